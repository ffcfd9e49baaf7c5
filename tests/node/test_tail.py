"""The tail: what a session lacks, and nothing more than its bound."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from novamesh_node.tail import Tail
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import (
    AttachRequest,
    AttemptChunk,
    Envelope,
    JobId,
    Signature,
    StreamChunk,
)

SIGNED = Envelope("t", b"x", (Signature(bytes(38), bytes(64)),))
CHECKPOINT, ATTESTATION = AttachRequest(checkpoint=SIGNED), AttachRequest(attestation=SIGNED)


def chunk(index: int, size: int = 32) -> AttachRequest:
    made = StreamChunk(index, 1, False, bytes(size))
    return AttachRequest(chunk=AttemptChunk(JobId(bytes(32)), 1, 1, made))


def filled(count: int, tail: Tail | None = None) -> Tail:
    tail = tail or Tail()
    for index in range(count):
        tail.append(chunk(index), index + 1)
    return tail


def test_is_crowded_before_it_loses_anything() -> None:
    tail = Tail(10 * (256 + 32))
    for count in range(1, 11):
        tail.append(chunk(count - 1), count)
        assert tail.crowded is (count > 5)
    assert len(tail.since(0)) == 10


def test_gives_everything_from_a_chunk_on() -> None:
    tail = filled(3)
    assert tail.since(0) == (chunk(0), chunk(1), chunk(2))
    assert tail.since(2) == (chunk(2),)
    assert tail.since(3) == ()


def test_what_was_said_about_the_last_chunk_received_is_said_again() -> None:
    tail = filled(2)
    tail.append(CHECKPOINT, 2)
    tail.append(chunk(2), 3)
    tail.append(ATTESTATION, 3)
    assert tail.since(2) == (CHECKPOINT, chunk(2), ATTESTATION)
    assert tail.since(3) == (ATTESTATION,)


def test_the_oldest_goes_when_the_bound_is_reached() -> None:
    tail = filled(100, Tail(bytes_max=10 * (256 + 32)))
    assert tail.size <= 10 * (256 + 32)
    assert tail.since(90) == tuple(chunk(index) for index in range(90, 100))
    with pytest.raises(NovaMeshError) as caught:
        tail.since(89)
    assert caught.value.code is Code.STALE


@given(
    st.lists(st.integers(32, 400), min_size=1, max_size=60),
    st.integers(300, 20_000),
    st.integers(0, 60),
)
def test_what_it_gives_is_whole_or_refused(sizes: list[int], bound: int, wanted: int) -> None:
    tail = Tail(bound)
    for index, size in enumerate(sizes):
        tail.append(chunk(index, size), index + 1)
    assert tail.size <= max(bound, 256 + max(sizes))
    try:
        given_chunks = tail.since(wanted)
    except NovaMeshError:
        assert wanted < len(sizes)
        return
    indexes = [m.chunk.chunk.index for m in given_chunks if m.chunk is not None]
    assert indexes == list(range(wanted, len(sizes)))
