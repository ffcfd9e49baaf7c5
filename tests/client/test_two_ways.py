"""Two streams of one answer: however they are interleaved and broken, it is read once, in order."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from novamesh import retries, two_ways
from novamesh.clock import Clock
from novamesh.completion import Piece
from novamesh.config import ClientSettings
from novamesh.following import ACKS_WAITING_MAX, Following
from novamesh.two_ways import TwoWays
from novamesh_proto import wire
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import ClientReceipt, JobPath, JobState, WatchResponse
from support.answers import SentAnswer, assign, send_answer
from support.fake_answer import Script
from support.two_streams import FakeLines, FakeNode, FakeRelay, Pauses

WORDS = tuple(f"w{number} " for number in range(8))
SENT = send_answer(Script(answer=WORDS, checkpoint_every=3))
ALL = list(range(len(WORDS)))


class Case:
    """One job, its two ends, and what came of it."""

    def __init__(self, sent: SentAnswer = SENT, rtt_s: float | None = 0.001) -> None:
        self.sent = sent
        self.node = FakeNode(sent)
        self.relay = FakeRelay(sent, self.node)
        lines = cast(Any, FakeLines(self.node))
        self.ways = TwoWays(self.relay, lines, sent.record, rtt_s)
        self.events: list[WatchResponse] = []
        self.paths: list[JobPath] = []

    @property
    def chunks(self) -> list[int]:
        return [event.chunk.index for event in self.events if event.chunk is not None]

    async def read(self, attempt: int = 0, from_chunk: int = 0) -> NovaMeshError | None:
        """Read to the end; what it broke with."""
        watch = self.ways.watch(self.sent.record.job, attempt, from_chunk)
        try:
            async with asyncio.timeout(30), aclosing(watch) as events:
                async for event in events:
                    self.events.append(event)
                    if event.chunk is not None:
                        self.paths.append(self.ways.path)
        except NovaMeshError as error:
            return error
        return None

    @property
    def ended(self) -> bool:
        last = self.events[-1].job if self.events else None
        return last is not None and last.state is JobState.SETTLED


PAUSES = st.lists(st.integers(0, 4), min_size=1, max_size=8).map(lambda each: tuple(each))
BREAKS = st.lists(st.integers(0, 14), max_size=4)


@given(PAUSES, PAUSES, BREAKS, st.one_of(st.none(), st.integers(0, 16)), st.booleans())
@settings(max_examples=300, deadline=None)
def test_any_interleaving_gives_the_answer_once(
    relay: tuple[int, ...],
    direct: tuple[int, ...],
    breaks: list[int],
    relay_breaks: int | None,
    gone: bool,
) -> None:
    async def play() -> None:
        case = Case()
        case.relay.pauses, case.node.pauses = Pauses(relay), Pauses(direct)
        case.node.breaks, case.node.gone = list(breaks), gone
        case.relay.breaks = [] if relay_breaks is None else [relay_breaks]
        error = await case.read()
        assert case.chunks == ALL[: len(case.chunks)], "a gap or a repeat"
        if relay_breaks is None:
            assert error is None
            assert case.chunks == ALL
            assert case.ended
        elif relay_breaks > 0 and not gone and not breaks:
            assert case.chunks == ALL, "the node alone would have told it all"
        if case.ended:
            assert case.chunks == ALL, "the end came before the answer"

    asyncio.run(play())


async def test_a_node_that_is_reached_brings_the_answer_itself() -> None:
    case = Case()
    assert await case.read() is None
    assert case.chunks == ALL
    assert case.ended
    assert set(case.paths) == {JobPath.DIRECT}
    assert case.node.dialed == [False]


async def test_what_ends_a_job_waits_for_the_last_chunk() -> None:
    case = Case()
    case.node.pauses = Pauses((5,))
    assert await case.read() is None
    kinds = [event for event in case.events if event.chunk is not None or event.job is not None]
    assert [event.job is not None for event in kinds] == [False] * len(ALL) + [True]


async def test_a_direct_stream_that_breaks_is_gone_on_with_by_the_relay() -> None:
    case = Case()
    case.node.breaks, case.node.gone = [4], True
    assert await case.read() is None
    assert case.chunks == ALL
    assert (case.paths[0], case.paths[-1]) == (JobPath.DIRECT, JobPath.RELAYED)
    assert case.node.dropped == 1


async def test_a_node_out_of_reach_costs_nothing() -> None:
    case = Case()
    case.node.gone = True
    assert await case.read() is None
    assert case.chunks == ALL
    assert set(case.paths) == {JobPath.RELAYED}


async def test_a_detour_is_not_taken_while_the_coordinator_is_there() -> None:
    case = Case()
    case.node.rtt_s = 1.0
    assert await case.read() is None
    assert set(case.paths) == {JobPath.RELAYED}
    assert case.node.doubted == 1, "one slow call does not send the next jobs round by the relay"
    away = Case()
    away.node.rtt_s, away.relay.breaks = 1.0, [2]
    assert (await away.read()) is not None
    assert away.chunks == ALL, "a long way is better than none"
    assert away.node.dialed == [False, True]


async def test_where_the_coordinator_is_far_the_answer_goes_on_through_a_tunnel() -> None:
    case = Case(rtt_s=0.3)
    case.node.tunnel = tunnel = asyncio.Event()
    case.relay.pauses = Pauses((0, 8))
    watch = case.ways.watch(SENT.record.job, 0, 0)
    async with asyncio.timeout(30), aclosing(watch) as events:
        async for event in events:
            case.events.append(event)
            if event.chunk is not None:
                case.paths.append(case.ways.path)
                if event.chunk.index == 2:  # it was relayed until here, and waited for nothing
                    tunnel.set()
    assert case.chunks == ALL
    assert case.ended
    assert case.node.tunnels == 1
    assert (case.paths[0], case.paths[-1]) == (JobPath.RELAYED, JobPath.TUNNEL)


@pytest.mark.parametrize("rtt_s", [None, 0.001])
async def test_no_tunnel_is_opened_where_the_coordinator_is_not_far(rtt_s: float | None) -> None:
    case = Case(rtt_s=rtt_s)
    case.node.tunnel = asyncio.Event()
    case.node.tunnel.set()
    case.node.refusals = [NovaMeshError(Code.UNAVAILABLE, "it is behind its router")]
    assert await case.read() is None
    assert case.chunks == ALL
    assert case.node.tunnels == 0
    assert set(case.paths) == {JobPath.RELAYED}


async def test_a_tunnel_that_is_no_better_is_not_taken_and_not_opened_again() -> None:
    case = Case(rtt_s=0.3)
    case.node.tunnel = asyncio.Event()
    asyncio.get_running_loop().call_soon(case.node.tunnel.set)
    case.node.refusals = [NovaMeshError(Code.UNAVAILABLE, "it is behind its router")]
    case.node.rtt_s = 0.29
    assert await case.read() is None
    assert case.chunks == ALL
    assert case.node.tunnels == 1
    assert set(case.paths) == {JobPath.RELAYED}


async def test_a_tunnel_that_never_opens_holds_nothing_up() -> None:
    """Neither a chunk nor the end waits for it."""
    case = Case(rtt_s=0.3)
    case.node.tunnel = asyncio.Event()
    assert await case.read() is None
    assert case.chunks == ALL
    assert case.ended
    assert case.node.tunnels == 1
    assert set(case.paths) == {JobPath.RELAYED}


async def test_a_tunnel_that_breaks_is_gone_on_with_by_the_relay() -> None:
    case = Case(rtt_s=0.3)
    case.node.tunnel = asyncio.Event()
    case.node.tunnel.set()
    case.node.path = JobPath.TUNNEL
    case.node.breaks, case.node.gone = [4], True
    assert await case.read() is None
    assert case.chunks == ALL
    assert (case.paths[0], case.paths[-1]) == (JobPath.TUNNEL, JobPath.RELAYED)


async def test_what_ends_a_job_does_not_wait_for_a_node_that_is_only_dialled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(two_ways, "HELD_S", 3600.0)
    case = Case()
    never = asyncio.Event()

    async def dial(*_: object, **__: object) -> None:
        await never.wait()

    monkeypatch.setattr(case.node, "open_line", dial)
    assert await case.read() is None
    assert case.ended
    assert set(case.paths) == {JobPath.RELAYED}


async def test_a_coordinator_that_goes_away_stops_no_direct_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(two_ways, "SETTLING_S", 0.05)
    case = Case()
    case.relay.breaks = [2]
    error = await case.read()
    assert error is not None
    assert error.code is Code.UNAVAILABLE
    assert case.chunks == ALL
    assert case.events[-1].attestation is not None


async def test_a_broken_line_is_dialled_again_while_the_coordinator_is_away() -> None:
    case = Case()
    case.relay.breaks, case.node.breaks = [1], [3, 6]
    error = await case.read()
    assert error is not None
    assert error.code is Code.UNAVAILABLE
    assert case.chunks == ALL
    assert case.node.dialed == [False, True, True]


async def test_a_node_that_dies_while_the_coordinator_is_away_is_lost_at_once() -> None:
    case = Case()
    case.relay.breaks, case.node.breaks, case.node.gone = [1], [4], True
    error = await case.read()
    assert error is not None
    assert error.code is Code.NODE_LOST
    assert 0 < len(case.chunks) < len(ALL)


async def test_where_the_node_never_was_reached_only_the_coordinator_is_away() -> None:
    case = Case()
    case.relay.breaks, case.node.gone = [5], True
    error = await case.read()
    assert error is not None
    assert error.code is Code.UNAVAILABLE


async def test_a_coordinator_that_never_was_there_is_said_at_once() -> None:
    case = Case()
    case.relay.breaks = [0]
    error = await case.read()
    assert error is not None
    assert error.code is Code.UNAVAILABLE
    assert case.node.dialed == []


async def test_a_stream_is_taken_up_where_it_broke() -> None:
    case = Case()
    case.relay.breaks, case.node.breaks, case.node.gone = [1], [4], True
    await case.read()
    case.node.gone = False
    had = len(case.chunks)
    case.events.clear()
    assert await case.read(1, had) is None
    assert case.chunks == ALL[had:]
    assert case.relay.watched == [(0, 0), (1, had)]


async def test_a_new_attempt_is_read_from_its_first_chunk() -> None:
    """What the old stream still brings belongs to another chain."""
    again = assign(SENT.record, 2).envelope
    later = SentAnswer(SENT.record, SENT.assignment, (WatchResponse(assignment=again),))
    events = (SENT.events[0], *later.events, *SENT.events[1:])
    case = Case(replace(SENT, events=events))
    case.node.refusals = [NovaMeshError(Code.UNAVAILABLE, "not yet")] * 2
    assert await case.read() is None
    assert case.chunks == ALL
    assert len(case.node.dialed) == 2


async def test_a_node_at_another_attempt_is_not_followed() -> None:
    case = Case()
    second = WatchResponse(assignment=assign(SENT.record, 2).envelope)
    case.node.sent = replace(SENT, events=(second, *SENT.events[1:]))
    assert await case.read() is None
    assert case.chunks == ALL
    assert set(case.paths) == {JobPath.RELAYED}


async def test_a_node_that_stands_still_does_not_hold_the_end_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(two_ways, "HELD_S", 0.05)
    lost = replace(SENT.events[-1].job, state=JobState.FAILED)  # type: ignore[type-var]
    case = Case()
    case.relay.sent = replace(SENT, events=(SENT.events[0], WatchResponse(job=lost)))
    case.node.hangs = asyncio.Event()
    assert await case.read() is None
    assert case.events[-1].job is not None
    assert case.events[-1].job.state is JobState.FAILED


async def test_a_coordinator_that_ends_a_job_without_end_is_refused() -> None:
    case = Case()
    settlement = next(event for event in SENT.events if event.settlement is not None)
    case.relay.sent = replace(SENT, events=(SENT.events[0], *[settlement] * 100))
    case.node.hangs = asyncio.Event()
    error = await case.read()
    assert error is not None
    assert error.code is Code.CORRUPT


@pytest.mark.parametrize("count", range(8))
async def test_a_reader_may_leave_at_any_event(count: int) -> None:
    case = Case()
    case.node.pauses, case.relay.pauses = Pauses((1,)), Pauses((2,))
    before = asyncio.all_tasks()
    watch = case.ways.watch(SENT.record.job, 0, 0)
    for _ in range(count):
        await anext(watch)
    await watch.aclose()
    assert asyncio.all_tasks() == before
    assert case.node.open == 0


def _follow(case: Case) -> tuple[Following, list[Piece]]:
    pieces: list[Piece] = []

    async def emit(piece: Piece) -> None:
        pieces.append(piece)

    return Following(
        case.sent.record.job, case.ways, case.sent.reader(), emit, Clock.system(), ClientSettings()
    ), pieces


@pytest.mark.parametrize("away", [False, True])
async def test_an_answer_that_is_proved_needs_no_coordinator(
    away: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node gets what the client signs, which is how it is paid when the coordinator returns."""
    monkeypatch.setattr(retries, "sleep", lambda _: asyncio.sleep(0))
    monkeypatch.setattr(two_ways, "SETTLING_S", 0.05)
    case = Case()
    case.relay.breaks = [1] if away else []
    case.relay.pauses = Pauses((0, 0, 8))
    following, pieces = _follow(case)
    async with asyncio.timeout(20):
        await following.to_its_end()
    assert "".join(map(str, pieces)) == "".join(WORDS)
    assert following.reader.attested
    (receipt,) = case.node.receipts
    assert wire.decode(ClientReceipt, receipt.payload).path is JobPath.DIRECT
    assert following.reader.conclude().proof.client_receipt is not None
    assert len(case.node.acks) > 0
    assert bool(case.relay.acks) is not away, "acks wait for nobody who is away"


async def test_a_coordinator_that_falls_silent_does_not_hold_the_answer_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its stream looks open; acks that it does not answer are not waited for."""
    monkeypatch.setattr(two_ways, "SETTLING_S", 0.05)
    words = tuple(f"w{number} " for number in range(2 * ACKS_WAITING_MAX))
    case = Case(send_answer(Script(answer=words, checkpoint_every=1)))
    case.relay.silent = True
    before = asyncio.all_tasks()
    following, pieces = _follow(case)
    async with asyncio.timeout(20):
        await following.to_its_end()
    assert "".join(map(str, pieces)) == "".join(words)
    assert len(case.node.acks) == len(words)
    assert len(case.relay.acks) == 1
    assert asyncio.all_tasks() == before


async def test_what_the_client_signs_goes_to_both(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case()
    following, _ = _follow(case)
    await following.to_its_end()
    assert case.node.receipts == case.relay.receipts
