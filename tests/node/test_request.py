"""Terms and body become the engine's request, and nothing is lost on the way."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from novamesh_node.request import Shape, build_request, map_sampling, render_prompt
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.identity import PrivateKey
from novamesh_proto.messages import JobBody, Sampling, TokenPrompt
from support.fake_engine import FakeTokenizer
from support.parties import CLIENT, NODE, body, digest, terms

SHAPE = Shape(context_max=16, vocab_size=1000)
TOKENIZER = FakeTokenizer()


def plain(**changes: Any) -> JobBody:
    return replace(body(), chat=None, **changes)


def test_each_kind_of_prompt() -> None:
    assert render_prompt(body("ab"), TOKENIZER) == (1, 97, 98)
    assert render_prompt(plain(text="ab"), TOKENIZER) == (97, 98)
    assert render_prompt(plain(tokens=TokenPrompt((5, 6))), TOKENIZER) == (5, 6)


def test_sampling_is_mapped_field_by_field() -> None:
    sampling = Sampling(
        seed_commitment=digest("seed"), max_tokens=9, temperature=0.5, top_k=7, top_p=0.9,
        min_p=0.1, repetition_penalty=1.2, stop_token_ids=(3,), logprobs=2, ignore_eos=True,
    )  # fmt: skip
    mapped = map_sampling(sampling, body(stop=("end",)))
    assert (mapped.max_tokens, mapped.temperature, mapped.top_k) == (9, 0.5, 7)
    assert (mapped.top_p, mapped.min_p, mapped.repetition_penalty) == (0.9, 0.1, 1.2)
    assert (mapped.stop, mapped.stop_token_ids) == (("end",), (3,))
    assert (mapped.logprobs, mapped.ignore_eos) == (2, True)
    assert mapped.seed == digest("client seed")


def test_the_prefix_is_part_of_the_completion() -> None:
    content = body(prefix_token_ids=(7, 8))
    request = build_request("r", terms(start_position=2), content, (1, 2, 3), SHAPE)
    assert (request.id, request.prompt, request.prefix) == ("r", (1, 2, 3), (7, 8))


def test_what_is_computed_for_a_client_is_reused_for_nobody_else() -> None:
    def scope(client: PrivateKey) -> bytes:
        return build_request("r", terms(client), body(), (1, 2, 3), SHAPE).cache_scope

    assert scope(CLIENT) == scope(CLIENT) == CLIENT.node_id
    assert scope(NODE) != scope(CLIENT)


@pytest.mark.parametrize(
    ("content", "start", "prompt", "code"),
    [
        (body(prefix_token_ids=(7,)), 0, (1,), Code.BAD_REQUEST),
        (body(), 1, (1,), Code.BAD_REQUEST),
        (body(), 0, (), Code.BAD_REQUEST),
        (body(), 0, (1,) * 16, Code.TOO_LARGE),
        (body(prefix_token_ids=(7,) * 8), 8, (1,) * 9, Code.TOO_LARGE),
        (body(), 0, (1000,), Code.BAD_REQUEST),
        (body(prefix_token_ids=(1000,)), 1, (1,), Code.BAD_REQUEST),
    ],
)
def test_what_cannot_run_is_refused_without_its_content(
    content: JobBody, start: int, prompt: tuple[int, ...], code: Code
) -> None:
    with pytest.raises(NovaMeshError) as caught:
        build_request("r", terms(start_position=start), content, prompt, SHAPE)
    assert caught.value.code is code


@given(st.lists(st.integers(0, 999), min_size=1, max_size=20), st.integers(0, 10))
def test_a_request_leaves_room_for_a_token_or_is_a_whole_answer(
    prompt: list[int], prefix: int
) -> None:
    content = body(prefix_token_ids=(1,) * prefix)
    try:
        request = build_request("r", terms(start_position=prefix), content, tuple(prompt), SHAPE)
    except NovaMeshError:
        assert len(prompt) + prefix + (not prefix) > SHAPE.context_max
        return
    assert len(request.prompt) + len(request.prefix) + (not prefix) <= SHAPE.context_max
