"""Orders and drafts: what is asked, how it is sealed, and that the terms fit the body."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from novamesh.order import (
    Asked,
    Continuation,
    client_seed,
    draft,
    max_tokens,
    order_of,
    prompt_bytes,
    prompt_of,
)
from novamesh_proto import envelope, sealing
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import ChatMessage, JobTerms, PoolModel
from support.clock import START_MS
from support.parties import CLIENT, COORDINATOR, NETWORK, PROFILE, descriptor, hpke_key, party, sign

MODEL = PoolModel(PROFILE, "nova-pico", 1, 1, 512)


def _header() -> envelope.Header:
    return envelope.header(CLIENT, NETWORK, (COORDINATOR.node_id,), START_MS)


def test_default_order() -> None:
    order = order_of("nova-pico", "hi", {}, 60.0)
    assert order.deadline_s == 60.0
    assert order.options.temperature == 0.0
    assert order.prompt.chat is not None
    assert order.prompt.chat.messages == (ChatMessage("user", "hi"),)


def test_none_means_not_said() -> None:
    asked = {"top_k": None, "stop": None, "system": None, "deadline_s": None}
    assert order_of("m", "hi", asked, 60.0) == order_of("m", "hi", {}, 60.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("prompt", "asked", "message"),
    [
        (None, {}, "needs one prompt, none"),
        ("", {}, "needs one prompt, none"),
        ("hi", {"text": "there"}, "several"),
        (None, {"messages": []}, "none"),
        (None, {"messages": [{"role": "robot", "content": "hi"}]}, "role 'robot'"),
        ("hi", {"temprature": 1.0}, "unknown option 'temprature'"),
        ("hi", {"deadline_s": 0}, "deadline of 0 s"),
        ("hi", {"deadline_s": 601}, "deadline of 601 s"),
        ("hi", {"deadline_s": float("nan")}, "deadline of nan s"),
    ],
)
def test_nonsense_is_refused(prompt: str | None, asked: Asked, message: str) -> None:
    with pytest.raises(NovaMeshError, match=message) as caught:
        order_of("m", prompt, asked, 60.0)
    assert caught.value.code is Code.BAD_REQUEST
    assert caught.value.hint


def test_seed_is_random_given_or_made_from_a_number() -> None:
    assert client_seed(None) != client_seed(None)
    assert client_seed(b"x" * 32) == b"x" * 32
    assert client_seed(7) == client_seed(7) != client_seed(8)
    # A known answer: the same seed must mean the same answer in every version.
    assert client_seed(7) == hashlib.sha256(b"novamesh/v1/client-seed\x007").digest()


def test_tokens_are_as_ordered_or_what_fits() -> None:
    long = order_of("m", "x" * 1600, {}, 60.0)
    assert max_tokens(long, MODEL, 256) == 512 - -(-prompt_bytes(long.prompt) // 4)
    assert max_tokens(order_of("m", "hi", {}, 60.0), MODEL, 256) == 256
    assert max_tokens(order_of("m", "hi", {"max_tokens": 9000}, 60.0), MODEL, 256) == 9000
    assert max_tokens(order_of("m", "x" * 9000, {}, 60.0), MODEL, 256) == 1


def test_prompt_bytes_bound_every_kind_of_prompt() -> None:
    assert prompt_bytes(prompt_of(text="é")) == 2
    assert prompt_bytes(prompt_of(token_ids=[1, 2, 3])) == 12
    assert prompt_bytes(prompt_of("hi")) > 2


@given(text=st.text(min_size=1, max_size=200), seed=st.none() | st.integers())
def test_draft_opens_at_every_candidate_and_nowhere_else(text: str, seed: int | None) -> None:
    order = order_of("nova-pico", None, {"text": text, "seed": seed, "stop": ["a"]}, 30.0)  # type: ignore[typeddict-item]
    made = draft(order, MODEL, _header(), CLIENT, 64)
    nodes = {name: party(name) for name in "ab"}
    job = made.wrap([sign(descriptor(node, name), node) for name, node in nodes.items()])
    terms = envelope.open(job.terms, JobTerms, network=NETWORK)
    for name, node in nodes.items():
        body = sealing.open_body(job, terms, hpke_key(name), node.node_id)
        assert body == made.body
        assert (body.text, body.stop) == (text, ("a",))
    with pytest.raises(NovaMeshError):
        sealing.open_body(job, terms, hpke_key("c"), nodes["a"].node_id)
    said = terms.message
    assert (said.timeout_ms, said.sampling.max_tokens) == (30_000, 64)
    assert (said.start_position, said.parent_job, said.prefix_digest) == (0, b"", b"")
    assert text.encode() not in job.body or len(text) < 4


def test_what_goes_on_takes_over_seed_sampling_and_prefix() -> None:
    order = order_of("m", "hi", {"temperature": 0.7, "stop": ["x"]}, 30.0)
    first = draft(order, MODEL, _header(), CLIENT, 64)
    sampling = first.terms.message.sampling
    after = Continuation(first.body.client_seed, sampling, first.job, (4, 5, 6))
    made = draft(order, MODEL, _header(), CLIENT, 99, after)
    said = made.terms.message
    assert (said.parent_job, said.start_position) == (first.job, 3)
    assert said.sampling == sampling
    assert said.prefix_digest == sealing.forced_prefix_digest(made.body, first.job) != b""
    assert replace(made.body, response_key=first.body.response_key, prefix_token_ids=()) == (
        first.body
    )
    assert made.body.response_key != first.body.response_key


def test_other_candidates_are_the_same_job() -> None:
    made = draft(order_of("m", "hi", {}, 30.0), MODEL, _header(), CLIENT, 64)
    one = made.wrap([sign(descriptor(party("a"), "a"), party("a"))])
    two = made.wrap([sign(descriptor(party("b"), "b"), party("b"))])
    assert (one.terms, one.body) == (two.terms, two.body)
    again = draft(order_of("m", "hi", {}, 30.0), MODEL, _header(), CLIENT, 64)
    assert again.job != made.job
