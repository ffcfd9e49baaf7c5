"""How long a pool is without a coordinator when the active one dies, or stands still.

    PYTHONPATH=tests python benchmarks/standby.py [--rounds N] [--jobs N] [--json]

Starts a PostgreSQL, an active coordinator and one that stands by, as an owner does, two nodes and a
client of production code with both addresses, and a log with as many settled jobs as wanted. In
each round the active one gets SIGKILL, in another one SIGSTOP, while an answer is on its way; the
clock runs from then until the other one says that it is ready, until the client gets an answer to a
question, until both nodes are attached again, and until the answer that was on its way is complete.
Then the dead one is started again to stand by, and the two have changed places.
Exits 1 when a median after SIGKILL is above its bar.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from novamesh.clock import Clock
from novamesh.pool import PoolConnection
from novamesh_coordinator.config import PostgresUrl
from novamesh_coordinator.snapshotter import SNAPSHOT_EVERY, Snapshotter
from novamesh_coordinator.store import Entry, open_store
from novamesh_proto.errors import NovaMeshError
from support.failpoints import quiet
from support.parties import party
from support.postgres_server import PostgresServer
from support.real_world import Asker, end, make_world
from support.sim.parties import Node, Pace
from support.standby_pool import OneOfTwo, StandbyPool
from support.table import Table

BARS_S: Final = {"serves": 10.0, "client": 20.0, "nodes": 20.0}
AGE_S: Final = 60  # of the oldest job
BATCH: Final = 500  # records in a transaction
TOKENS: Final = 100
CALL_S: Final = 5.0  # the client that watches waits no longer for one answer


async def write(database: PostgresUrl, jobs: int) -> None:
    """A log of settled jobs."""
    table = Table(open_pool=True)
    table.clock.set_wall(time.time_ns() // 1_000_000 - AGE_S * 1_000)
    client, node = table.client(), table.node()
    store = await open_store(database)
    await store.load()
    for number in range(jobs):
        table.order(client, node, key=f"job-{number}")
        table.answer(table.assigned(node), chunks=1, step_s=AGE_S / jobs)
        table.jobs.clear()
        table.effects.clear()
        if len(table.log) >= BATCH or number == jobs - 1:
            await store.commit([Entry((record,)) for record in table.log])
            table.log.clear()
            if store.mark.seq - store.snapshot_seq >= SNAPSHOT_EVERY:
                await Snapshotter(store).save(table.core)
    await store.close()


async def until(ask: Callable[[], Awaitable[Any]]) -> None:
    """Ask until it gives something."""
    while True:
        try:
            if await ask():
                return
        except NovaMeshError:
            pass
        await asyncio.sleep(0.02)


async def take_over(
    active: OneOfTwo, other: OneOfTwo, asker: Asker, watcher: PoolConnection, sent: signal.Signals
) -> dict[str, float]:
    """Seconds from the signal to each of the things that are waited for."""
    earlier = len(asker.wishes)
    asked = asyncio.create_task(asker.ask(TOKENS, deadline_s=90.0, tries=20))
    while not any(len(wish.pieces) > 5 for wish in asker.wishes[earlier:]):  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    began_s = time.monotonic()
    active.send(sent)

    async def nodes() -> bool:
        return sum(model.nodes for model in await watcher.list_models()) >= 2

    async def clocked(work: Awaitable[Any]) -> float:
        await work
        return time.monotonic() - began_s

    serves, client, attached, answer = await asyncio.gather(
        clocked(other.served()),
        clocked(until(watcher.hello)),
        clocked(until(nodes)),
        clocked(asked),
    )
    if asker.wishes[-1].completion is None:
        raise AssertionError(f"not answered: {asker.wishes[-1].error}")
    if sent is signal.SIGSTOP:
        active.send(signal.SIGCONT)
    await active.ended()
    await active.start("--standby")
    return {"serves": serves, "client": client, "nodes": attached, "answer": answer}


async def measure(rounds: int, jobs: int) -> dict[str, dict[str, list[float]]]:
    """All rounds, by signal."""
    found: dict[str, dict[str, list[float]]] = {}
    with PostgresServer() as server, tempfile.TemporaryDirectory(prefix="standby-") as made:
        root, database = Path(made), server.make_database()
        await write(database, jobs)
        async with StandbyPool(root, database) as pool:
            world = make_world(root, 0, random.Random(0))
            world.pool = replace(world.pool, address=pool.addresses)
            members = [Node(world, number, 2, Pace(0.05, 0.05)) for number in (0, 1)]
            for node in members:
                await node.start()
            asker = Asker(world)
            watcher = PoolConnection(world.pool, party("watcher"), Clock.system(), CALL_S)
            await until(watcher.list_models)
            pair = [pool.first, pool.second]
            for sent in (signal.SIGKILL, signal.SIGSTOP):
                for _ in range(rounds):
                    took = await take_over(*pair, asker, watcher, sent)
                    pair.reverse()
                    for name, seconds in took.items():
                        found.setdefault(sent.name, {}).setdefault(name, []).append(seconds)
            await asker.pool.close()
            await watcher.close()
            await end(members)
    return found


def main() -> int:
    """Measure and tell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    quiet()
    found = asyncio.run(measure(options.rounds, options.jobs))
    if options.json:
        print(json.dumps(found))
    else:
        print(f"{'':10} {'until':8} {'median s':>8} {'least':>6} {'most':>6} {'bar':>4}")
        for sent, times in found.items():
            for name, each in times.items():
                bar = f"{BARS_S[name]:.0f}" if name in BARS_S and sent == "SIGKILL" else ""
                middle = statistics.median(each)
                row = f"{middle:8.2f} {min(each):6.2f} {max(each):6.2f} {bar:>4}"
                print(f"{sent:10} {name:8} {row}")
    killed = found["SIGKILL"]
    return int(any(statistics.median(killed[name]) > bar for name, bar in BARS_S.items()))


if __name__ == "__main__":
    sys.exit(main())
