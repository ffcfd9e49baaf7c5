"""One attempt as it arrives: times, bursts and bounds."""

from __future__ import annotations

import pytest

from novamesh.received import ReceivedAttempt
from novamesh_proto.errors import NovaMeshError
from support.answers import send_answer

SENT_ANSWER = send_answer()


def _attempt() -> ReceivedAttempt:
    return ReceivedAttempt(
        SENT_ANSWER.record, SENT_ANSWER.assignment, SENT_ANSWER.record.candidates[0]
    )


def test_times_are_of_the_first_token_and_of_the_last_chunk() -> None:
    attempt = _attempt()
    assert attempt.times_us() == (0, 0)
    for number, event in enumerate(e for e in SENT_ANSWER.events if e.chunk is not None):
        assert event.chunk is not None
        attempt.take_chunk(event.chunk, 100 + number)
    assert attempt.times_us() == (100, 99 + attempt.opener.chunks)
    assert attempt.position == len(attempt.token_ids) == 5


def test_chunks_out_of_order_change_nothing() -> None:
    attempt = _attempt()
    first, second = [e.chunk for e in SENT_ANSWER.events if e.chunk is not None][:2]
    assert first is not None
    assert second is not None
    with pytest.raises(NovaMeshError):
        attempt.take_chunk(second, 1)
    assert attempt.token_ids == []
    attempt.take_chunk(first, 1)
    with pytest.raises(NovaMeshError):
        attempt.take_chunk(first, 2)
    assert attempt.token_ids == [0]
    assert len(attempt.arrivals) == 1
