"""Nodes that die all the time: one is killed every two seconds and comes back five seconds later.

The coordinator and each node are processes of their own, the nodes with an engine that counts; the
clients are the SDK in this process, so every wait of theirs is seen. Whoever asks asks once: what
its answer survives is failover's work. Afterwards the log is looked over as `novamesh coordinator
check` does, and every answer and receipt with it.

`python -m support.chaos` has 200 jobs done by 8 nodes.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Final

from novamesh_proto.errors import Code
from support.failpoints import quiet
from support.fake_engine import FIRST_TOKEN
from support.lives import begin, beside_a_coordinator, kill, live_as_node, premises_in
from support.real_world import Asker, make_world, problems
from support.sim.parties import Wish

EVERY_S: Final = 2.0
BACK_S: Final = 5.0
DEADLINE_S: Final = 60.0
LATE_S: Final = 15.0  # nobody may wait for longer than the deadline and this
TOKENS: Final = (30, 300)  # at 20 ms each: up to 6 s of work, on a machine that has the time
COMPLETE_SHARE: Final = 0.99
LIMIT_S: Final = 1_200.0
TRIES: Final = 8  # while no node is free


@dataclass
class Chaos:
    """One run; `problems` is what must not be."""

    jobs: int = 200
    nodes: int = 8
    clients: int = 8
    every_s: float = EVERY_S
    seed: int = 0
    kills: int = 0
    wishes: list[Wish] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    _served: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> Chaos:
        """All of it."""
        quiet()
        with tempfile.TemporaryDirectory(prefix="chaos-") as made:
            root = Path(made)
            premises = premises_in(root)
            work = partial(self._work, root, premises.port)
            self.problems += await beside_a_coordinator(premises, work, LIMIT_S)
            found = [one async for one in problems(premises.folder, self.wishes)]
            # That nobody is there at all is bad luck, and counted as a job that is not complete.
            self.problems += [one for one in found if "no attached node offers" not in one]
        self._judge()
        return self

    @property
    def complete(self) -> int:
        """How many jobs were answered to their end."""
        return sum(wish.completion is not None for wish in self.wishes)

    @property
    def broken(self) -> list[float]:
        """The longest pause between two pieces of each answer that survived a loss, seconds."""
        survived = [wish for wish in self.wishes if wish.completion and wish.survived]
        return [
            max((after - before for before, after in pairwise(wish.came_s)), default=0.0)
            for wish in survived
        ]

    @property
    def figures(self) -> str:
        """What came of it, in a line."""
        reasons = Counter(wish.error.code.value for wish in self.wishes if wish.error)
        pauses = sorted(self.broken) or [0.0]
        took = sorted(wish.took_s for wish in self.wishes) or [0.0]
        return (
            f"{self.complete} of {len(self.wishes)} jobs complete, {self.kills} kills; "
            f"{len(self.broken)} answers survived a loss with a pause of "
            f"{statistics.median(pauses):.1f} s (longest {pauses[-1]:.1f} s); a job took "
            f"{statistics.median(took):.1f} s (longest {took[-1]:.1f} s); not answered: "
            f"{dict(reasons)}"
        )

    async def _work(self, root: Path, port: int) -> None:
        rng = random.Random(self.seed)
        living = {n: begin(live_as_node, root, port, n) for n in range(self.nodes)}
        killing = asyncio.create_task(self._kill(root, port, living, rng))
        left = list(range(self.jobs))
        try:
            asking = [
                self._ask(Asker(make_world(root, port, rng), f"client-{number}"), left, rng)
                for number in range(self.clients)
            ]
            await asyncio.gather(*asking)
        finally:
            killing.cancel()
            await asyncio.wait([killing])
            for process in living.values():
                await kill(process)

    async def _ask(self, asker: Asker, left: list[int], rng: random.Random) -> None:
        """One job after the other, while any is left."""
        try:
            while not await _somebody_serves(asker):  # noqa: ASYNC110  nobody would tell
                await asyncio.sleep(0.2)
            self._served.set()
            while left:
                left.pop()
                began_s = time.monotonic()
                wish = await asker.ask(rng.randint(*TOKENS), DEADLINE_S, TRIES)
                wish.took_s = time.monotonic() - began_s
                self.wishes.append(wish)
        finally:
            await asker.pool.close()

    async def _kill(
        self, root: Path, port: int, living: dict[int, BaseProcess], rng: random.Random
    ) -> None:
        """One node every two seconds, whatever it does; it is back five seconds later."""
        back: dict[int, float] = {}
        await self._served.wait()
        due_s = time.monotonic() + self.every_s
        while True:
            await asyncio.sleep(0.05)
            now_s = time.monotonic()
            for number in [number for number, at_s in back.items() if at_s <= now_s]:
                del back[number]
                living[number] = begin(live_as_node, root, port, number)
            up = [number for number in living if number not in back]
            for number in [number for number in up if not living[number].is_alive()]:
                self.problems.append(f"node {number} ended with {living[number].exitcode}")
                back[number] = now_s + BACK_S
            if now_s >= due_s and up:
                number = rng.choice(up)
                await kill(living[number])
                self.kills += 1
                back[number], due_s = now_s + BACK_S, now_s + self.every_s

    def _judge(self) -> None:
        for wish in self.wishes:
            tokens = [token for piece in wish.pieces for token in piece.token_ids]
            if tokens != list(range(FIRST_TOKEN, FIRST_TOKEN + len(tokens))):
                self.problems.append("an answer has a gap or a repeat")
            if wish.took_s > wish.deadline_s + LATE_S:
                self.problems.append(f"a job took {wish.took_s:.1f} s")
        if self.complete < len(self.wishes) * COMPLETE_SHARE:
            self.problems.append(f"only {self.complete} of {len(self.wishes)} jobs are complete")


async def _somebody_serves(asker: Asker) -> bool:
    wish = await asker.ask(1, DEADLINE_S, TRIES)
    if wish.error is not None and wish.error.code not in (Code.MODEL_NOT_FOUND, Code.UNAVAILABLE):
        raise wish.error
    return wish.completion is not None


def main() -> int:
    """Have jobs done; 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    began_s = time.monotonic()
    done = asyncio.run(Chaos(options.jobs, seed=options.seed).run())
    print(done.figures)
    print(f"{len(done.problems)} problems {done.problems[:5]}, {time.monotonic() - began_s:.0f} s")
    return bool(done.problems)


if __name__ == "__main__":
    sys.exit(main())
