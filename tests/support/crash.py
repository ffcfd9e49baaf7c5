"""A real coordinator that is killed at a named place, and nodes and clients that live through it.

The coordinator is a process of its own with its own disk, port and TLS; nodes and clients are the
production code of the simulator's parties, on the real network and the real clock. Whoever dies is
started again, sometimes to die at once a second time; then everything must come out right.

`python -m support.crash --rounds 25` kills at every place 25 times.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

from support.failpoints import FAILPOINTS, quiet, serve
from support.lives import begin, premises_in
from support.real_world import Premises, end, make_world, problems
from support.sim.parties import Client, Node, Pace, Wish

LIMIT_S = 180.0  # seconds of one story, on a machine with much else to do
TOGETHER = 12


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
        rng = random.Random(f"{self.name} {self.seed}")
        premises = premises_in(root)
        premises.furnish()
        keeping = asyncio.create_task(self._keep_alive(premises, rng))
        try:
            clients = await self._work(root, premises.port, rng)
        finally:
            keeping.cancel()
            await asyncio.wait([keeping])
        wishes = [wish for client in clients for wish in client.wishes]
        self.problems += [problem async for problem in problems(premises.folder, wishes)]

    async def _keep_alive(self, premises: Premises, rng: random.Random) -> None:
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
                    where = (premises.folder, premises.config)
                    process = begin(serve, *where, *death)
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
        world = make_world(root, port, rng)
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
        await end((*nodes, *clients))
        return clients


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
        yield f"{name:28}{counts}  {dict(Counter(wrong)) or 'ok'}"


def main() -> int:
    """Kill everywhere; 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", default="", help="places whose name contains this")
    options = parser.parse_args()
    names = [name for name in FAILPOINTS if options.only in name]
    began_s = time.monotonic()
    stories = asyncio.run(campaign(names, range(options.rounds)))
    print(*table(stories), sep="\n")
    kills, wrong = sum(s.kills for s in stories), sum(bool(s.problems) for s in stories)
    print(f"{kills} kills, {wrong} stories wrong, {time.monotonic() - began_s:.0f} s")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
