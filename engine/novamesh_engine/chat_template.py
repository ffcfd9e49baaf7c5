"""Turns a conversation into the text a model was trained on, by the model's own jinja2 template.

Rules: templates run in jinja2's immutable sandbox, without clock, files or network, and with bounds
on template, conversation, ranges, products and output. The template belongs to the profile that a
node's owner chose and verified: the bounds catch accidents, they are no wall against a template
made to exhaust memory. Errors never quote the conversation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, NoReturn

from jinja2 import TemplateError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from novamesh_engine.errors import RequestError
from novamesh_proto.errors import Code, NovaMeshError

TEMPLATE_CHARS_MAX: Final = 1 << 16
MESSAGES_MAX: Final = 1024
OUTPUT_CHARS_MAX: Final = 1 << 22
RANGE_MAX: Final = 4096
PRODUCT_MAX: Final = 1 << 16
POWER_MAX: Final = 16
ROLES: Final = ("system", "user", "assistant", "tool")

# What a template can stumble over, in itself or in a conversation that it does not expect. jinja2
# compiles to Python: what is too deep or too long for that is Python's error, not a TemplateError.
_FAULTS: Final = (TemplateError, ArithmeticError, AttributeError, LookupError, MemoryError,
                  NameError, RecursionError, SyntaxError, TypeError, ValueError)  # fmt: skip

Message = Mapping[str, str]


class _Sandbox(ImmutableSandboxedEnvironment):
    """The sandbox that transformers uses, with bounds on what could grow without one."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Multiply and exponentiate within PRODUCT_MAX."""
        sizes = [_size(left), _size(right)]
        if max(sizes) > PRODUCT_MAX or (operator == "**" and sizes[1] > POWER_MAX):
            raise TemplateError("a product in the template is too large")
        return super().call_binop(context, operator, left, right)


class ChatTemplate:
    """One compiled template; `specials` are the names it may use, like bos_token.

    Raises: NovaMeshError (corrupt) if the source is too long or is not a template.
    """

    def __init__(self, source: str, specials: Mapping[str, str]) -> None:
        if len(source) > TEMPLATE_CHARS_MAX:
            raise _corrupt(f"the chat template is longer than {TEMPLATE_CHARS_MAX} characters")
        sandbox = _Sandbox(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )  # autoescape stays off: the output is a prompt, never HTML
        sandbox.filters["tojson"] = _to_json
        sandbox.globals.update(raise_exception=_refuse, range=_bounded_range)
        self._specials = dict(specials)
        try:
            self._template = sandbox.from_string(source)
        except _FAULTS as error:
            raise _corrupt("the chat template is not valid jinja2") from error

    def render(self, messages: Sequence[Message], generate: bool = True) -> str:
        """The prompt text; with `generate` it ends where the assistant's answer begins.

        Raises: RequestError (bad_request) if the template refuses the messages, (too_large) if
        there are too many or the text grows too long.
        """
        if not 1 <= len(messages) <= MESSAGES_MAX:
            message = f"a conversation has {len(messages)} messages, not 1 to {MESSAGES_MAX}"
            raise RequestError(message, "send fewer messages", Code.TOO_LARGE)
        # Templates build markers from roles: one called "end" would write the end of a turn.
        if any(message.get("role") not in ROLES for message in messages):
            raise RequestError("a message has an unknown role", f"use one of {', '.join(ROLES)}")
        values = {**self._specials, "messages": [dict(message) for message in messages]}
        parts: list[str] = []
        size = 0
        try:
            for part in self._template.generate(values, add_generation_prompt=generate):
                parts.append(part)
                size += len(part)
                if size > OUTPUT_CHARS_MAX:
                    message = f"the prompt is longer than {OUTPUT_CHARS_MAX} characters"
                    raise RequestError(message, "shorten the conversation", Code.TOO_LARGE)
        except _FAULTS as error:
            hint = "most templates want user and assistant to alternate, beginning with user"
            raise RequestError("the model's chat template refuses these messages", hint) from error
        return "".join(parts)


def _size(value: Any) -> float:
    return abs(value) if isinstance(value, int | float) else len(value)


def _to_json(value: Any, indent: int | None = None) -> str:
    """As transformers has it: plain JSON, no HTML escapes, every script readable."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _bounded_range(*bounds: int) -> range:
    steps = range(*bounds)
    if len(steps) > RANGE_MAX:
        raise TemplateError("a range in the template is too long")
    return steps


def _corrupt(message: str) -> NovaMeshError:
    return NovaMeshError(Code.CORRUPT, message, "get the model's files again")
