"""A real coordinator that is killed at a named place, and nodes and clients that live through it.

The coordinator is a process of its own with its own disk, port and TLS; nodes and clients are the
production code of the simulator's parties, on the real network and the real clock. Whoever dies is
started again, sometimes to die at once a second time; then everything must come out right.

`python -m support.crash --rounds 25` kills at every place 25 times.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import random
import signal
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from novamesh.config import Pool
from novamesh.receipts import verify_file
from novamesh_coordinator.check import check
from novamesh_coordinator.config import CoordinatorConfig
from novamesh_coordinator.events import AttemptSettled, JobAdmitted
from novamesh_coordinator.log_chain import read_row
from novamesh_coordinator.store import open_store
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.identity import format_node_id
from support.failpoints import FAILPOINTS, quiet, serve
from support.parties import COORDINATOR, NETWORK
from support.sim.loop import START_S
from support.sim.parties import IDENTITY, Client, Node, Pace, Wish, World

PROCESSES = multiprocessing.get_context("forkserver")
LIMIT_S = 60.0
TOGETHER = 12
HARMLESS = frozenset(
    {Code.BUSY, Code.EXPIRED, Code.NODE_LOST, Code.NO_CAPACITY, Code.STALE, Code.UNAVAILABLE}
)
OPENING = asyncio.Lock()
"""Alembic keeps its context in a global: one at a time."""


@dataclass
class Crash:
    """One coordinator's story: where it dies, and what is wrong afterwards."""

    name: str
    seed: int
    kills: int = 0
    problems: list[str] = field(default_factory=list)
    took_s: float = 0.0

    async def run(self) -> Crash:
        """All of it."""
        began_s = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="crash-") as folder:
            root = Path(folder)
            try:
                async with asyncio.timeout(LIMIT_S):
                    await self._live(root)
            except TimeoutError:
                self.problems.append(f"not over within {LIMIT_S:g} s")
        self.took_s = time.monotonic() - began_s
        return self

    async def _live(self, root: Path) -> None:
        rng, port = random.Random(f"{self.name} {self.seed}"), _free_port()
        folder = root / "coordinator"
        folder.mkdir()
        (folder / "coordinator.key").touch(0o600)
        (folder / "coordinator.key").write_text(COORDINATOR.to_bytes().hex() + "\n")
        config = CoordinatorConfig(NETWORK, f"127.0.0.1:{port}", "", open=True)
        keeping = asyncio.create_task(self._keep_alive(folder, config, rng))
        try:
            clients = await self._work(root, port, rng)
        finally:
            keeping.cancel()
            await asyncio.wait([keeping])
        self.problems += [problem async for problem in _found(folder, clients)]

    async def _keep_alive(
        self, folder: Path, config: CoordinatorConfig, rng: random.Random
    ) -> None:
        """Start the coordinator, and start it again whenever it is dead."""
        process: BaseProcess | None = None
        often = FAILPOINTS[self.name].often
        deaths = [(self.name, rng.randint(1, often))]
        if rng.random() < 0.4:  # again, on the way back
            deaths.append((self.name, rng.randint(1, min(often, 3))))
        try:
            while True:
                if process is None or not process.is_alive():
                    self._note_end(process)
                    death = deaths.pop(0) if deaths else ("", 0)
                    process = PROCESSES.Process(target=serve, args=(folder, config, *death))
                    process.start()
                await asyncio.sleep(0.02)
        finally:
            if process is not None:
                process.terminate()
                await asyncio.to_thread(process.join, 10)
                process.kill()

    def _note_end(self, process: BaseProcess | None) -> None:
        if process is not None:
            self.kills += 1
            if process.exitcode != -signal.SIGKILL:
                self.problems.append(f"the coordinator ended with {process.exitcode}")

    async def _work(self, root: Path, port: int, rng: random.Random) -> list[Client]:
        """Two nodes and two clients, until every wish is over."""
        loop = asyncio.get_running_loop()
        epoch_ms = time.time_ns() // 1_000_000 - round((loop.time() - START_S) * 1000)
        pool = Pool(f"127.0.0.1:{port}", format_node_id(COORDINATOR.node_id), NETWORK, "")
        nobody: Any = None
        world = World(loop, nobody, nobody, rng, lambda text: None, root, pool, epoch_ms)
        nodes = [Node(world, number, 2, Pace(0.01, 0.004)) for number in (0, 1)]
        clients = [Client(world, number) for number in (0, 1)]
        for client in clients:
            client.wishes += [Wish(rng.randint(4, 70), 20.0, tries=40) for _ in range(2)]
        clients[0].wishes[0].tokens = 160  # long enough for checkpoints, however slow this machine
        for party in (*nodes, *clients):
            await party.start()
        while any(client.busy for client in clients):  # noqa: ASYNC110  nobody would tell
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.1)
        for party in (*nodes, *clients):
            assert party.process is not None
            for task in tuple(party.process.tasks):
                task.cancel()
                await asyncio.wait([task], timeout=5)
        return clients


async def _found(folder: Path, clients: list[Client]) -> AsyncIterator[str]:
    """What is wrong with the log, and with what clients hold."""
    try:
        async with OPENING:
            store = await open_store(folder / "coordinator.db")
    except NovaMeshError as error:
        yield f"the database cannot be opened: {error.message}"
        return
    try:
        report = await check(IDENTITY, store)
        records = [read_row(row) async for row in store.rows()]
    finally:
        await store.close()
    for problem in report.problems:
        yield problem
    admitted = {r.job for r in records if isinstance(r, JobAdmitted)}
    settled = {r.settlement for r in records if isinstance(r, AttemptSettled)}
    wishes = [wish for client in clients for wish in client.wishes]
    if not any(wish.completion for wish in wishes):
        yield f"nobody was answered: {[wish.error and wish.error.message for wish in wishes]}"
    for wish in wishes:
        if wish.completion is None:
            if wish.error is None or wish.error.code not in HARMLESS:
                yield f"a client got neither an answer nor a reason that is one: {wish.error}"
            continue
        if wish.completion.job not in admitted:
            yield "a client was answered, and its job is not in the log"
        if wish.completion.receipt.settlement not in settled:
            yield "a client holds a settlement that the log does not know"
        try:
            verify_file(wish.completion.receipt_path)
        except (NovaMeshError, OSError) as error:
            yield f"a receipt does not verify: {error}"


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
    return port


async def campaign(names: list[str], seeds: range) -> list[Crash]:
    """Every place with every seed, a few at the same time."""
    quiet()
    room = asyncio.Semaphore(TOGETHER)

    async def one(crash: Crash) -> Crash:
        async with room:
            return await crash.run()

    stories = [Crash(name, seed) for seed in seeds for name in names]
    return list(await asyncio.gather(*map(one, stories)))


def table(stories: list[Crash]) -> Iterator[str]:
    """A line for each place: stories, kills, and what was wrong."""
    for name in dict.fromkeys(story.name for story in stories):
        mine = [story for story in stories if story.name == name]
        kills = sum(story.kills for story in mine)
        wrong = [problem for story in mine for problem in story.problems]
        longest_s = max(story.took_s for story in mine)
        counts = f"{len(mine):4} stories {kills:4} kills {longest_s:5.1f} s at most"
        yield f"{name:28}{counts}  {wrong[:3] or 'ok'}"


def main() -> int:
    """Kill everywhere; 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", default="", help="places whose name contains this")
    options = parser.parse_args()
    PROCESSES.set_forkserver_preload(["support.failpoints"])
    names = [name for name in FAILPOINTS if options.only in name]
    began_s = time.monotonic()
    stories = asyncio.run(campaign(names, range(options.rounds)))
    print(*table(stories), sep="\n")
    kills, wrong = sum(s.kills for s in stories), sum(bool(s.problems) for s in stories)
    print(f"{kills} kills, {wrong} stories wrong, {time.monotonic() - began_s:.0f} s")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
