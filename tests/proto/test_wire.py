"""Every message survives the wire unchanged, and nothing else comes through it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from novamesh_proto import limits, wire
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import (
    AttachRequest,
    ChatMessage,
    ChatPrompt,
    ChunkBody,
    ErrorDetail,
    FinishReason,
    IdleQuery,
    JobBody,
    JobsQuery,
    JobState,
    JobTerms,
    JobView,
    ModelOffer,
    NodeLoad,
    PoolModel,
    Sampling,
    StreamChunk,
    TokenPrompt,
)
from support import parties
from support.message_values import MESSAGES, values
from support.refusals import unless_refused

REFUSALS = (Code.BAD_REQUEST, Code.TOO_LARGE)
MARKER = "do-not-print-me"
BODY = parties.body()
VIEW = JobView(
    job=parties.digest("job"),
    state=JobState.ADMITTED,
    attempt=0,
    node=b"",
    model_profile=parties.PROFILE,
    admitted_at_ms=1,
)


def refused(code: Code, message: Any) -> str:
    """The refusal's text; both directions refuse, so it is enough to try to send."""
    with pytest.raises(NovaMeshError) as caught:
        wire.encode(message)
    assert caught.value.code is code, caught.value.message
    return caught.value.message


@pytest.mark.parametrize("cls", MESSAGES, ids=lambda cls: cls.__name__)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_every_message_comes_back_unchanged(cls: type, data: st.DataObject) -> None:
    message = data.draw(values(cls))
    assert wire.decode(cls, wire.encode(message)) == message
    assert wire.from_pb(cls, wire.to_pb(message)) == message


@pytest.mark.parametrize("cls", MESSAGES, ids=lambda cls: cls.__name__)
@settings(max_examples=20, deadline=None)
@given(data=st.binary(max_size=200))
def test_any_bytes_are_a_message_or_refused(cls: type, data: bytes) -> None:
    message = unless_refused(lambda: wire.decode(cls, data), *REFUSALS)
    if message is not None:
        assert wire.decode(cls, wire.encode(message)) == message


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_mutated_message_is_whole_or_refused(data: st.DataObject) -> None:
    good = bytearray(wire.encode(parties.terms()))
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    message = unless_refused(lambda: wire.decode(JobTerms, bytes(good)), *REFUSALS)
    if message is not None:
        assert wire.decode(JobTerms, wire.encode(message)) == message


def test_a_later_field_is_ignored() -> None:
    unknown = bytes.fromhex("fa3f026869")
    assert wire.decode(JobTerms, wire.encode(parties.terms()) + unknown) == parties.terms()


def test_a_missing_part_is_named() -> None:
    with pytest.raises(NovaMeshError, match=r"JobTerms\.header is missing"):
        wire.decode(JobTerms, b"")


def test_entries_are_counted_before_any_is_built() -> None:
    empty_turns = b"\x0a\x00" * (limits.CHAT_MESSAGES_MAX + 1)
    with pytest.raises(NovaMeshError, match=r"ChatPrompt\.messages has size 257") as caught:
        wire.decode(ChatPrompt, empty_turns)
    assert caught.value.code is Code.TOO_LARGE


def test_too_many_bytes_are_not_parsed() -> None:
    with pytest.raises(NovaMeshError) as caught:
        wire.decode(ErrorDetail, bytes(11), bytes_max=10)
    assert caught.value.code is Code.TOO_LARGE


@pytest.mark.parametrize(
    "prompt",
    [
        {"chat": None},
        {"text": "also"},
        {"text": "also", "tokens": TokenPrompt((1,))},
    ],
    ids=["none", "two", "three"],
)
def test_a_body_has_exactly_one_prompt(prompt: dict[str, Any]) -> None:
    assert "exactly one" in refused(Code.BAD_REQUEST, replace(BODY, **prompt))


def test_a_one_of_has_exactly_one_field() -> None:
    refused(Code.BAD_REQUEST, AttachRequest())
    refused(Code.BAD_REQUEST, AttachRequest(load=NodeLoad(1, True), idle_query=IdleQuery()))
    one = AttachRequest(idle_query=IdleQuery())
    assert wire.decode(AttachRequest, wire.encode(one)) == one
    with pytest.raises(NovaMeshError):
        wire.decode(AttachRequest, b"")


@pytest.mark.parametrize("size", [0, 38])
def test_an_optional_id_is_absent_or_whole(size: int) -> None:
    view = replace(VIEW, node=bytes(size))
    assert wire.decode(JobView, wire.encode(view)) == view


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (replace(VIEW, node=bytes(37)), Code.BAD_REQUEST),
        (replace(VIEW, node=bytes(39)), Code.BAD_REQUEST),
        (replace(VIEW, job=bytes(31)), Code.BAD_REQUEST),
        (replace(VIEW, message="é" * 257), Code.TOO_LARGE),
        (replace(VIEW, attempt=-1), Code.BAD_REQUEST),
        (replace(VIEW, attempt=2**32), Code.BAD_REQUEST),
        (replace(VIEW, admitted_at_ms=2**64), Code.BAD_REQUEST),
        (replace(VIEW, code="\ud800"), Code.BAD_REQUEST),
        (replace(BODY, stop=("",)), Code.BAD_REQUEST),
        (replace(BODY, stop=("x" * 257,)), Code.TOO_LARGE),
        (replace(BODY, stop=("x",) * 17), Code.TOO_LARGE),
        (replace(BODY, prefix_token_ids=(-1,)), Code.BAD_REQUEST),
        (replace(BODY, prefix_token_ids=(2**32,)), Code.BAD_REQUEST),
        (ChatPrompt(()), Code.BAD_REQUEST),
        (ChatPrompt((ChatMessage("user", "x"),) * 257), Code.TOO_LARGE),
        (StreamChunk(0, 257, False, bytes(32)), Code.BAD_REQUEST),
        (StreamChunk(0, 0, False, bytes(31)), Code.BAD_REQUEST),
        (StreamChunk(0, 0, False, bytes(limits.CHUNK_BYTES_MAX + 1)), Code.TOO_LARGE),
        (Sampling(parties.digest("seed"), 1, temperature=float("nan")), Code.BAD_REQUEST),
        (Sampling(parties.digest("seed"), 1, temperature=float("inf")), Code.BAD_REQUEST),
        (Sampling(parties.digest("seed"), 1, top_p=0.0), Code.BAD_REQUEST),
        (Sampling(parties.digest("seed"), 0), Code.BAD_REQUEST),
        (Sampling(parties.digest("seed"), 1, version=2), Code.BAD_REQUEST),
        (JobsQuery(parties.head(parties.CLIENT), count=0), Code.BAD_REQUEST),
        (PoolModel(parties.PROFILE, "x" * 65, 1, 1, 1), Code.TOO_LARGE),
    ],
)
def test_what_breaks_a_bound_is_not_sent(message: Any, code: Code) -> None:
    assert "." in refused(code, message)  # Message.field


def test_a_refusal_names_the_field_and_never_the_value() -> None:
    text = refused(Code.TOO_LARGE, replace(BODY, stop=(MARKER * 30,)))
    assert "JobBody.stop" in text
    assert MARKER not in text


@pytest.mark.parametrize("speed", [float("nan"), float("inf"), -1.0, 1e10])
def test_a_speed_that_is_none_is_not_taken_in(speed: float) -> None:
    for field in ("decode_tokens_per_s", "prefill_tokens_per_s"):
        pb = wire.to_pb(parties.OFFER)
        setattr(pb, field, speed)
        with pytest.raises(NovaMeshError, match=field) as caught:
            wire.from_pb(ModelOffer, pb)
        assert caught.value.code is Code.BAD_REQUEST


def test_an_unknown_value_of_an_enum_is_refused() -> None:
    pb = wire.to_pb(ChunkBody((), "", (), FinishReason.STOP))
    pb.finish = 99
    with pytest.raises(NovaMeshError, match="unknown value"):
        wire.from_pb(ChunkBody, pb)


def test_text_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(NovaMeshError) as caught:
        wire.decode(ErrorDetail, bytes.fromhex("0a02c328"))
    assert caught.value.code is Code.BAD_REQUEST


def test_a_class_without_a_protobuf_message_is_a_bug() -> None:
    with pytest.raises(TypeError, match="int"):
        wire.decode(int, b"")


def test_a_prompt_at_the_limit_passes() -> None:
    body = JobBody(parties.digest("a"), parties.digest("b"), text="x" * limits.BODY_BYTES_MAX)
    assert wire.decode(JobBody, wire.encode(body)) == body


def test_a_job_has_ended_from_settled_on() -> None:
    ended = {JobState.SETTLED, JobState.FAILED, JobState.EXPIRED, JobState.CANCELLED}
    assert {state for state in JobState if state.terminal} == ended


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (replace(VIEW, job=bytes(31)), "JobView.job has size 31, allowed is 32 to 32"),
        (replace(VIEW, attempt=2**32), "JobView.attempt does not fit its type"),
        (replace(VIEW, code="\ud800"), "JobView.code does not fit its type"),
        (JobsQuery(parties.head(parties.CLIENT), 0), "JobsQuery.count is outside 1 to 200"),
        (ChatPrompt(()), "ChatPrompt.messages has size 0, allowed is 1 to 256"),
        (replace(BODY, text="also"), "JobBody.chat/text/tokens needs exactly one, has 2"),
    ],
)
def test_a_broken_bound_is_told_with_its_numbers(message: Any, words: str) -> None:
    assert refused(Code.BAD_REQUEST, message) == words


def test_bytes_that_are_no_message_are_told_by_its_name() -> None:
    for data, bytes_max, code, words in (
        (bytes(11), 10, Code.TOO_LARGE, "ErrorDetail has 11 bytes, at most 10 are taken"),
        (b"\xff", 10, Code.BAD_REQUEST, "these bytes are not a ErrorDetail"),
    ):
        with pytest.raises(NovaMeshError) as caught:
            wire.decode(ErrorDetail, data, bytes_max)
        assert (caught.value.code, caught.value.message) == (code, words)
    assert wire.decode(ErrorDetail, b"", 0) == ErrorDetail("", "")
    pb = wire.to_pb(ChunkBody((), "", (), FinishReason.STOP))
    pb.finish = 99
    with pytest.raises(NovaMeshError) as caught:
        wire.from_pb(ChunkBody, pb)
    assert caught.value.message == "ChunkBody.finish has an unknown value"
