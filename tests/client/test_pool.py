"""The connection to a coordinator: members, refusals, and dialing anew when it has restarted."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from novamesh.clock import Clock
from novamesh.config import Pool
from novamesh.pool import PoolConnection, Wanted
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import JobId
from support.fake_answer import PICO
from support.fake_pool import FakePool
from support.parties import CLIENT, party


@pytest.fixture
def pool() -> Iterator[FakePool]:
    with FakePool() as started:
        yield started


@asynccontextmanager
async def _connection(entry: Pool) -> AsyncIterator[PoolConnection]:
    connection = PoolConnection(entry, CLIENT, Clock.system(), 5.0)
    try:
        yield connection
    finally:
        await connection.close()


async def test_card_is_the_coordinators(pool: FakePool) -> None:
    async with _connection(pool.entry) as connection:
        card = await connection.hello()
    assert card.issuer == pool.key.node_id
    assert card.message.version == "0.1.0"


async def test_the_round_trip_is_that_of_the_fastest_of_the_last_calls(pool: FakePool) -> None:
    """One call that had to be worked for does not make a coordinator look far away."""
    times_s = iter([0.0, 0.5, 1.0, 1.01, *(number / 10 for number in range(20, 40))])
    clock = Clock(Clock.system().now_ms, lambda: next(times_s))
    connection = PoolConnection(pool.entry, CLIENT, clock, 5.0)
    assert connection.rtt_s is None
    seen = []
    for _ in range(10):
        await connection.hello()
        seen.append(connection.rtt_s)
    await connection.close()
    assert seen == pytest.approx([0.5, *[0.01] * 8, 0.1])


async def test_who_is_no_member_shows_its_invite_once(pool: FakePool) -> None:
    async with _connection(pool.entry) as connection:
        await connection.list_models()
        await connection.list_models()
        assert pool.calls["Join"] == 1
        pool.members.clear()
        with pytest.raises(NovaMeshError) as caught:
            await connection.list_models()
    assert caught.value.code is Code.NOT_A_MEMBER


async def test_bad_invite_is_refused(pool: FakePool) -> None:
    async with _connection(replace(pool.entry, invite="00")) as connection:
        with pytest.raises(NovaMeshError, match="used up"):
            await connection.list_models()


async def test_candidates_come_with_reservations(pool: FakePool) -> None:
    async with _connection(pool.entry) as connection:
        found = await connection.match(Wanted(PICO, 10, 20))
        assert [len(one.reservation) for one in found] == [16, 16]
        excluded = (pool.nodes[0].node_id,)
        assert len(await connection.match(Wanted(PICO, 10, 20, excluded))) == 1


async def test_restarted_coordinator_is_dialed_anew(pool: FakePool) -> None:
    async with _connection(pool.entry) as connection:
        await connection.list_models()
        pool.stop()
        with pytest.raises(NovaMeshError) as caught:
            await connection.list_models()
        assert caught.value.code is Code.UNAVAILABLE
        pool.start()
        assert len(await connection.list_models()) == 1


async def test_impostor_on_the_same_address_is_refused(pool: FakePool) -> None:
    async with _connection(pool.entry) as connection:
        await connection.list_models()
        pool.stop()
        pool.key = party("impostor")
        pool.start()
        codes = []
        for _ in range(2):
            with pytest.raises(NovaMeshError) as caught:
                await connection.list_models()
            codes.append(caught.value.code)
    assert codes[-1] is Code.PIN_MISMATCH


async def test_watching_what_is_not_there(pool: FakePool) -> None:
    async with _connection(pool.entry) as connection:
        with pytest.raises(NovaMeshError) as caught:
            _ = [event async for event in connection.watch(JobId(bytes(32)), 0, 0)]
        assert caught.value.code is Code.NOT_FOUND
        with pytest.raises(NovaMeshError):
            await connection.get_job(JobId(bytes(32)))


class _Silent(FakePool):
    """One that has nothing to tell of a job until the stream ends."""

    def Watch(self, request: Any, context: Any) -> Iterator[Any]:
        over = threading.Event()
        context.add_callback(over.set)
        self.calls["Watch"] += 1
        over.wait(20)
        yield from ()


async def test_who_reads_from_a_line_that_is_closed_is_not_cancelled() -> None:
    with _Silent() as pool:
        async with _connection(pool.entry) as connection:

            async def read() -> None:
                async for _ in connection.watch(JobId(bytes(32)), 0, 0):
                    pass

            reading = asyncio.create_task(read())
            while not pool.calls["Watch"]:  # noqa: ASYNC110  nobody would tell
                await asyncio.sleep(0.01)
            await connection.close()
            with pytest.raises(NovaMeshError, match="closed") as caught:
                await asyncio.wait_for(reading, 10)
    assert caught.value.code is Code.UNAVAILABLE


async def test_other_pool_refuses_our_signature(pool: FakePool) -> None:
    async with _connection(replace(pool.entry, network="elsewhere")) as connection:
        with pytest.raises(NovaMeshError) as caught:
            await connection.list_models()
        assert caught.value.code is Code.WRONG_NETWORK
