"""A coordinator dies, or stands still, with jobs in flight; the one that stood by takes over."""

from __future__ import annotations

import asyncio
import random
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from novamesh_coordinator.check import check_database
from novamesh_proto.errors import MEANINGS, Code
from support.database_places import ServerPlace
from support.failpoints import quiet
from support.postgres_server import PostgresServer
from support.real_world import Asker, end, make_world, problems
from support.sim.parties import IDENTITY, Client, Node, Pace, Wish, World
from support.standby_pool import StandbyPool

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def there(postgres_server: PostgresServer) -> ServerPlace:
    quiet()
    return ServerPlace(postgres_server, postgres_server.make_database())


def make_members(root: Path, pool: StandbyPool) -> tuple[World, list[Node], list[Client]]:
    """Two nodes, and three clients that want two answers each."""
    world = make_world(root, 0, random.Random(5))
    world.pool = replace(world.pool, address=pool.addresses)
    nodes = [Node(world, number, 3, Pace(0.05, 0.05)) for number in (0, 1)]
    clients = [Client(world, number) for number in range(3)]
    for client in clients:
        client.wishes += [Wish(tokens, 90.0, tries=40) for tokens in (80, 20)]
    return world, nodes, clients


async def work(there: ServerPlace, root: Path, signalled: signal.Signals) -> list[str]:
    """What is wrong after the active one got a signal in the middle of three answers."""
    async with StandbyPool(root, there.where) as pool:
        assert await pool.first.health() == (200, "ok")
        assert await pool.second.health() == (200, "standby")
        world, nodes, clients = make_members(root, pool)
        for party in (*nodes, *clients):
            await party.start()
        async with asyncio.timeout(60):
            while sum(len(one.wishes[0].pieces) > 3 for one in clients) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        pool.first.send(signalled)
        await pool.second.served()
        assert await pool.second.health() == (200, "ok")
        assert there.run("select epoch from writers") == [(2,)]
        if signalled is signal.SIGSTOP:
            pool.first.send(signal.SIGCONT)
            assert await pool.first.ended() == MEANINGS[Code.CONFLICT].exit
            assert "another coordinator has become the one that writes" in pool.first.log()
        else:
            with pytest.raises(AssertionError, match="is using this database"):
                await pool.first.start()  # without --standby
            assert await pool.first.ended() == MEANINGS[Code.CONFLICT].exit
        async with asyncio.timeout(200):
            while any(client.busy for client in clients):  # noqa: ASYNC110  nobody would tell
                await asyncio.sleep(0.1)
        late = Asker(world)
        wish = await late.ask(tries=8)
        await late.pool.close()
        assert wish.completion is not None, wish.error
        await end((*nodes, *clients))
    wishes = [wish for client in clients for wish in client.wishes]
    assert sum(wish.completion is not None for wish in wishes) >= 5, [one.error for one in wishes]
    found = [problem async for problem in problems(there.where, [*wishes, wish])]
    report = await check_database(IDENTITY, there.where)
    assert report.live_jobs == 0
    assert report.settlements >= len(wishes)
    return found


async def test_the_active_one_is_killed(there: ServerPlace, tmp_path: Path) -> None:
    assert await work(there, tmp_path, signal.SIGKILL) == []


async def test_the_active_one_stands_still_and_wakes_up(there: ServerPlace, tmp_path: Path) -> None:
    assert await work(there, tmp_path, signal.SIGSTOP) == []
