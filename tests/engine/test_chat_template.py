"""Templates render as transformers renders them, and cannot reach or grow beyond their bounds."""

from __future__ import annotations

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from novamesh_engine.chat_template import MESSAGES_MAX, TEMPLATE_CHARS_MAX, ChatTemplate
from novamesh_engine.errors import RequestError
from novamesh_proto.errors import Code, NovaMeshError

MESSAGES = [
    {"role": "system", "content": "Be <b>brief</b> & \"kind\"."},
    {"role": "user", "content": "Wie geht's, Zoë?"},
]  # fmt: skip
MISTRAL = """
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] %}{%- set rest = messages[1:] %}
{%- else %}
    {%- set system = '' %}{%- set rest = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in rest %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate') }}
    {%- endif %}
    {%- if loop.last and system %}{{- '[INST] ' + system + '\\n' + message.content + ' [/INST]' }}
    {%- else %}{{- '[INST] ' + message.content + ' [/INST]' }}{%- endif %}
{%- endfor %}"""
CHATML = """{% for m in messages %}{% if loop.index > 9 %}{% break %}{% endif %}
<|im_start|>{{ m.role }}
{{ m.content | tojson }} {{ "-" * 3 }}<|im_end|>
{% endfor %}
{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def render(source: str, messages: list[dict[str, str]] | None = None) -> str:
    return ChatTemplate(source, {"bos_token": "<s>"}).render(messages or MESSAGES)


@pytest.mark.parametrize("source", [MISTRAL, CHATML])
def test_it_renders_as_transformers_does(source: str) -> None:
    wanted, _ = render_jinja_template(
        conversations=[MESSAGES], chat_template=source, add_generation_prompt=True, bos_token="<s>"
    )
    assert render(source) == wanted[0]


def test_what_the_template_refuses_is_the_callers_error_and_is_not_quoted() -> None:
    with pytest.raises(RequestError, match="refuses these messages") as refused:
        render(MISTRAL, [{"role": "assistant", "content": "secret"}])
    assert refused.value.code is Code.BAD_REQUEST
    assert "secret" not in refused.value.message + refused.value.hint


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception.__globals__['sys'] }}",
        "{{ 'x' * 100000 }}",
        "{{ 2 ** 100 }}",
        "{{ messages * 2.5 }}",
        "{% for i in range(10000) %}{% endfor %}",
        "{{ messages[7].content + 1 }}",
        "{{ 1 / 0 }}",
        "{{ 1e999 | int }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% include 'other' %}",
    ],
)
def test_what_a_template_may_not_do(source: str) -> None:
    with pytest.raises(RequestError, match="refuses these messages"):
        render(source)


def test_products_within_bounds_work() -> None:
    assert render("{{ 3 * 4 }} {{ 2 ** 3 }} {{ '-' * 3 }} {{ 2.5 * 2 }}") == "12 8 --- 5.0"


def test_output_is_bounded() -> None:
    source = "{% for i in range(4000) %}{{ '-' * 60000 }}{% endfor %}"
    with pytest.raises(RequestError, match="prompt is longer") as refused:
        render(source)
    assert refused.value.code is Code.TOO_LARGE


@pytest.mark.parametrize("count", [0, MESSAGES_MAX + 1])
def test_conversations_are_bounded(count: int) -> None:
    with pytest.raises(RequestError, match=f"has {count} messages"):
        ChatTemplate("x", {}).render([{"role": "user", "content": ""}] * count)


@pytest.mark.parametrize(
    "source",
    [
        "{% if %}",
        "x" * (TEMPLATE_CHARS_MAX + 1),
        "{{" + "(" * 30000 + "1" + ")" * 30000 + "}}",
        "{% for a in x %}" * 30 + "{% endfor %}" * 30,
        "{{ 1" + "0" * 5000 + " }}",
    ],
    ids=["syntax", "long", "deep", "nested", "digits"],
)
def test_what_is_no_template_is_refused_when_loaded(source: str) -> None:
    with pytest.raises(NovaMeshError) as refused:
        ChatTemplate(source, {})
    assert refused.value.code is Code.CORRUPT
