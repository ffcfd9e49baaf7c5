"""Following a job over any transport: broken streams, slow readers, acks that get lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

import pytest

from novamesh import retries
from novamesh.clock import Clock
from novamesh.completion import Piece
from novamesh.config import ClientSettings
from novamesh.following import ACKS_WAITING_MAX, REWATCHES, Following
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import (
    Envelope,
    JobId,
    JobPath,
    JobView,
    SealedJob,
    WatchResponse,
)
from support.answers import SentAnswer, assign, send_answer
from support.fake_answer import Script

WORDS = tuple(f"w{n} " for n in range(12))
SENT = send_answer(Script(answer=WORDS, checkpoint_every=1))


class _Line:
    """A transport in memory that breaks off after so many events, once for each number."""

    def __init__(self, sent: SentAnswer, *breaks: int) -> None:
        self._sent = sent
        self._breaks = list(breaks)
        self.watched: list[tuple[int, int]] = []
        self.acks: list[Envelope] = []
        self.receipts: list[Envelope] = []
        self.refuse = False
        self.code = Code.UNAVAILABLE
        self.path = JobPath.RELAYED
        self.gate = asyncio.Event()
        self.gate.set()

    async def watch(
        self, job: JobId, attempt: int, from_chunk: int
    ) -> AsyncGenerator[WatchResponse]:
        assert job == self._sent.record.job
        self.watched.append((attempt, from_chunk))
        until = self._breaks.pop(0) if self._breaks else len(self._sent.events)
        for event in self._sent.events[:until]:
            yield event
        if until < len(self._sent.events):
            raise NovaMeshError(self.code, "the line broke")

    async def acknowledge(self, ack: Envelope) -> None:
        await self.gate.wait()
        self.acks.append(ack)
        if self.refuse:
            raise NovaMeshError(Code.UNAVAILABLE, "the ack got lost")

    async def submit_receipt(self, receipt: Envelope) -> None:
        self.receipts.append(receipt)
        if self.refuse:
            raise NovaMeshError(Code.STALE, "not wanted")

    async def submit(self, job: SealedJob, reservations: Sequence[bytes]) -> JobView:
        raise AssertionError("a job that is followed was submitted before")

    async def cancel(self, job: JobId) -> JobView:
        raise AssertionError("following stops nothing")

    async def get_job(self, job: JobId) -> JobView:
        raise AssertionError("following asks nothing")


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "sleep", lambda _: asyncio.sleep(0))


def _following(line: _Line, sent: SentAnswer = SENT) -> tuple[Following, list[Piece]]:
    pieces: list[Piece] = []

    async def emit(piece: Piece) -> None:
        pieces.append(piece)

    reader = sent.reader()
    clock, settings = Clock.system(), ClientSettings()
    return Following(sent.record.job, line, reader, emit, clock, settings), pieces


async def test_a_stream_that_breaks_off_is_taken_up_where_it_broke() -> None:
    line = _Line(SENT, 0, 4, 9)
    following, pieces = _following(line)
    await following.to_its_end()
    assert "".join(map(str, pieces)) == "".join(WORDS)
    assert line.watched[:2] == [(0, 0), (0, 0)]
    assert line.watched[2][0] == 1
    assert line.watched[2][1] > 0
    assert len(line.acks) == len(WORDS)
    assert len(line.receipts) == 1


async def test_a_stream_that_stays_broken_ends_following() -> None:
    line = _Line(SENT, *[3] * (REWATCHES + 1))
    following, _ = _following(line)
    with pytest.raises(NovaMeshError, match="the line broke"):
        await following.to_its_end()
    assert len(line.watched) == REWATCHES
    assert not following.reader.ended


class _Silent(_Line):
    """One that breaks, and then is never reached again."""

    async def watch(
        self, job: JobId, attempt: int, from_chunk: int
    ) -> AsyncGenerator[WatchResponse]:
        if self.watched:
            await asyncio.Event().wait()
        async for event in super().watch(job, attempt, from_chunk):
            yield event


async def test_patience_ends_where_nobody_is_reached_any_more() -> None:
    """Without patience it would be waited for; a stream that never broke is."""
    line = _Silent(SENT, 5)
    following, pieces = _following(line)
    following.patience_s = 0.05
    with pytest.raises(NovaMeshError, match="nobody who has the job was reached"):
        await following.to_its_end()
    assert len(line.watched) == 1
    assert pieces


async def test_patience_begins_anew_where_somebody_was_reached() -> None:
    line = _Line(SENT, 4, 9)
    following, pieces = _following(line)
    following.patience_s = 60.0
    await following.to_its_end()
    assert "".join(map(str, pieces)) == "".join(WORDS)


async def test_an_answer_that_begins_again_is_not_read_on() -> None:
    again = assign(SENT.record, 2).envelope
    events = (*SENT.events[:4], WatchResponse(assignment=again), *SENT.events[4:])
    sent = SentAnswer(SENT.record, SENT.assignment, events)
    line = _Line(sent)
    following, pieces = _following(line, sent)
    with pytest.raises(NovaMeshError, match="began the answer again") as caught:
        await following.to_its_end()
    assert caught.value.code is Code.NODE_LOST
    assert len(line.watched) == 1
    assert pieces


async def test_a_transport_that_knows_the_node_to_be_gone_is_not_asked_again() -> None:
    line = _Line(SENT, 5)
    line.code = Code.NODE_LOST
    following, _ = _following(line)
    with pytest.raises(NovaMeshError, match="the line broke"):
        await following.to_its_end()
    assert len(line.watched) == 1


async def test_what_nobody_wants_is_lost_without_harm() -> None:
    line = _Line(SENT)
    line.refuse = True
    following, pieces = _following(line)
    await following.to_its_end()
    assert len(pieces) == len(WORDS)
    assert following.reader.conclude().pieces


async def test_acks_that_are_not_taken_hold_the_stream_back() -> None:
    words = tuple(f"w{n} " for n in range(3 * ACKS_WAITING_MAX))
    sent = send_answer(Script(answer=words, checkpoint_every=1))
    line = _Line(sent)
    line.gate.clear()
    following, pieces = _following(line, sent)
    task = asyncio.create_task(following.to_its_end())
    for _ in range(1000):
        await asyncio.sleep(0)
    assert len(pieces) == ACKS_WAITING_MAX + 1
    line.gate.set()
    await task
    assert len(pieces) == len(words)
