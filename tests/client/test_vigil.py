"""Silence on a line: who is asked when, and that a machine without power is not waited for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from novamesh import pool as module
from novamesh import transport, vigil
from novamesh.clock import Clock
from novamesh.pool import PoolConnection
from novamesh.vigil import ASK_S, FRESH_S, FRESH_S_MAX, SILENT_S, FellSilentError, Vigil
from novamesh_coordinator.doorstep import PENANCE_S
from novamesh_proto import wire
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import JobId, JobState, JobView, WatchResponse
from support.cutting_proxy import CuttingProxy
from support.fake_answer import PICO
from support.fake_pool import FakePool
from support.parties import CLIENT

JOB = JobId(bytes(32))
AWAY = NovaMeshError(Code.UNAVAILABLE, "nobody is there")


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vigil, "SILENT_S", 0.05)


class _End:
    """The other end of a line, as a vigil sees it."""

    def __init__(self, answers: int = 10**6) -> None:
        self.answers = answers
        self.asked = 0
        self.given_up = asyncio.Event()

    async def ask(self) -> None:
        self.asked += 1
        if self.asked > self.answers:
            raise AWAY

    async def give_up(self) -> None:
        assert not self.given_up.is_set()
        self.given_up.set()


async def test_whoever_answers_is_asked_again_after_the_next_silence() -> None:
    end = _End(answers=3)
    with Vigil(end.ask, end.give_up).due():
        await asyncio.wait_for(end.given_up.wait(), 10)
    assert end.asked == 4


async def test_nobody_is_asked_where_no_answer_is_due_or_something_comes() -> None:
    end = _End()
    watch = Vigil(end.ask, end.give_up)
    for _ in range(20):
        with watch.due(), watch.due():
            await asyncio.sleep(0.01)
    with watch.due():
        for _ in range(20):
            watch.hear()
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    assert end.asked == 0


async def test_a_line_has_one_question_at_a_time_and_leaves_no_task() -> None:
    end, before = _End(), asyncio.all_tasks()
    watch = Vigil(end.ask, end.give_up)
    with watch.due(), watch.due(), watch.due():
        assert len(asyncio.all_tasks() - before) == 1
        await asyncio.sleep(0.12)
    assert 1 <= end.asked <= 3
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


def test_a_question_outlasts_a_coordinators_penance_and_all_of_them_the_bar() -> None:
    farthest_s = FRESH_S_MAX / vigil.DIAL_RTTS
    assert PENANCE_S + farthest_s < ASK_S
    assert SILENT_S + ASK_S + FRESH_S_MAX <= 8.0, "the bar for the next token is 10 s"


async def test_what_comes_while_the_question_is_in_vain_is_a_sign_of_life() -> None:
    end = _End(answers=0)
    watch = Vigil(end.ask, end.give_up)

    async def ask() -> None:
        if end.asked < 3:
            watch.hear()
        await end.ask()

    watch._ask = ask
    with watch.due():
        await asyncio.wait_for(end.given_up.wait(), 10)
    assert end.asked == 4


class _Working(FakePool):
    """One that has nothing to tell of a job until its reader leaves."""

    def Watch(self, request: Any, context: Any) -> Iterator[Any]:
        self.calls["Watch"] += 1
        over = threading.Event()
        if context.add_callback(over.set):
            over.wait(20)
        yield from ()


@pytest.fixture
def pool() -> Iterator[FakePool]:
    with _Working() as started:
        yield started


@asynccontextmanager
async def _reading(
    pool: FakePool, *ports: int
) -> AsyncIterator[tuple[list[asyncio.Task[None]], PoolConnection]]:
    """Two readers of a pool at these ports, from when it tells both."""
    entry = replace(pool.entry, address=",".join(f"127.0.0.1:{port}" for port in ports))
    connection = PoolConnection(entry, CLIENT, Clock.system(), 5.0)

    async def read() -> None:
        async for _ in connection.watch(JOB, 0, 0):
            raise AssertionError("there was nothing to tell")

    readers = [asyncio.create_task(read()) for _ in range(2)]
    try:
        while pool.calls["Watch"] < 2:  # noqa: ASYNC110  nobody would tell
            await asyncio.sleep(0.01)
        yield readers, connection
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.wait(readers)
        await connection.close()


async def _ends(readers: list[asyncio.Task[None]]) -> list[NovaMeshError]:
    """What each of them broke with."""
    ended = await asyncio.wait_for(asyncio.gather(*readers, return_exceptions=True), 20)
    return [error for error in ended if isinstance(error, NovaMeshError)]


async def test_a_pool_whose_nodes_work_for_long_is_read_on(pool: FakePool) -> None:
    async with _reading(pool, _port(pool)) as (readers, connection):
        while pool.calls["Hello"] < 5:  # noqa: ASYNC110  nobody would tell
            await asyncio.sleep(0.01)
        assert not any(reader.done() for reader in readers)
        assert not connection.silent


async def test_a_machine_that_lost_its_power_is_noticed(
    pool: FakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ASK_S", 0.3)
    monkeypatch.setattr(vigil, "FRESH_S", 0.3)
    with CuttingProxy(_port(pool)) as proxy:
        async with _reading(pool, proxy.port) as (readers, connection):
            proxy.freeze()
            ends = await _ends(readers)
            assert [type(error) for error in ends] == [FellSilentError] * 2
            assert all(error.code is Code.UNAVAILABLE for error in ends)
            assert connection.silent
            proxy.thaw()
            assert await connection.answers()
            assert not connection.silent


async def test_where_only_the_line_is_dead_a_fresh_one_is_ready(
    pool: FakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ASK_S", 0.3)
    with CuttingProxy(_port(pool)) as proxy:
        async with _reading(pool, proxy.port, _port(pool)) as (readers, connection):
            proxy.freeze()
            ends = await _ends(readers)
            assert [type(error) for error in ends] == [NovaMeshError] * 2
            assert not connection.silent
            hellos = pool.calls["Hello"]
            assert await connection.answers()
            assert pool.calls["Hello"] == hellos + 1


async def test_a_refusal_is_a_sign_of_life(pool: FakePool) -> None:
    busy = NovaMeshError(Code.BUSY, "you ask too often", retry_after_ms=100)
    pool.script.refusals["Hello"] = [busy] * 100
    async with _reading(pool, _port(pool)) as (readers, _):
        while len(pool.script.refusals["Hello"]) > 95:  # noqa: ASYNC110  nobody would tell
            await asyncio.sleep(0.01)
        assert not any(reader.done() for reader in readers)


class _Telling(FakePool):
    """One that tells of a job once."""

    def Watch(self, request: Any, context: Any) -> Iterator[Any]:
        yield wire.to_pb(WatchResponse(job=JobView(JOB, JobState.ADMITTED, 0, b"", PICO, 0)))


async def test_whoever_refuses_or_tells_something_is_not_silent(pool: FakePool) -> None:
    pool.script.refusals["ListModels"] = [NovaMeshError(Code.BUSY, "you ask too often")]
    with _Telling() as telling:
        for each in (pool, telling):
            connection = PoolConnection(each.entry, CLIENT, Clock.system(), 5.0)
            connection.silent = True
            if each is pool:
                with pytest.raises(NovaMeshError, match="too often"):
                    await connection.list_models()
            else:
                assert [event async for event in connection.watch(JOB, 0, 0)]
            assert not connection.silent
            await connection.close()


@pytest.mark.parametrize(
    ("rtt_s", "within_s"), [(0.001, FRESH_S), (0.3, 2.4), (0.9, FRESH_S_MAX), (None, FRESH_S)]
)
async def test_to_dial_who_is_far_takes_longer(
    pool: FakePool, monkeypatch: pytest.MonkeyPatch, rtt_s: float | None, within_s: float
) -> None:
    given_s = []

    async def open_channel(*asked: Any) -> transport.Channel:
        given_s.append(asked[-1])
        raise AWAY

    times_s = iter([0.0, rtt_s or 0.0])
    clock = Clock(Clock.system().now_ms, lambda: next(times_s))
    connection = PoolConnection(pool.entry, CLIENT, clock, 5.0)
    if rtt_s is not None:
        await connection.hello()
        await connection.close()
    monkeypatch.setattr(transport, "open_channel", open_channel)
    assert not await connection.answers()
    assert given_s == [pytest.approx(within_s, abs=0.1)]


async def test_who_waits_for_the_same_dial_shares_its_end(pool: FakePool) -> None:
    """Else a few acks, one after the other, would hold an answer back for a minute."""
    with CuttingProxy(_port(pool)) as proxy:
        proxy.freeze()
        entry = replace(pool.entry, address=f"127.0.0.1:{proxy.port}")
        connection = PoolConnection(entry, CLIENT, Clock.system(), 0.3)
        async with asyncio.timeout(6):
            ends = await asyncio.gather(
                *[connection.list_models() for _ in range(40)], return_exceptions=True
            )
        assert {error.code for error in ends if isinstance(error, NovaMeshError)} == {
            Code.UNAVAILABLE
        }
        proxy.thaw()
        assert await connection.list_models()
        await connection.close()


def _port(pool: FakePool) -> int:
    return int(pool.address.rpartition(":")[2])
