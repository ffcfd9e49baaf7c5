"""Nodes and clients in processes of their own, killed with SIGKILL in the middle of their work.

A node dies mid-stream and comes back with its disk; a client dies while its answer comes and takes
it up again. Whoever asks asks again where the answer broke off: what was delivered of an answer is
never begun anew behind its back. Afterwards log and receipts must agree.

`python -m support.kills --jobs 200` kills somebody every two seconds meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from novamesh.receipts import verify_file
from novamesh_coordinator.store import open_store
from novamesh_proto.errors import Code, NovaMeshError
from support.failpoints import quiet
from support.lives import begin, beside_a_coordinator, kill, live_as_node, premises_in
from support.real_world import HARMLESS, Asker, Premises, make_world, problems
from support.sim.parties import Wish

ANSWERED: Final = "answered"
UNHEARD: Final = "unheard"  # a client's file of jobs that the pool says it never got
TRIES_MAX: Final = 12  # of one wish
LIMIT_S: Final = 900.0


def live_as_client(root: Path, port: int, number: int, wishes: int) -> None:
    """A client's process: takes up what an earlier life left, then goes on with its wishes."""
    quiet()
    asyncio.run(_ask_for(root, port, number, wishes))


async def _ask_for(root: Path, port: int, number: int, wishes: int) -> None:
    rng = random.Random(time.time_ns())
    asker = Asker(make_world(root, port, rng), f"client-{number}")
    diary = root / f"client-{number}" / "diary"
    diary.parent.mkdir(exist_ok=True)
    diary.touch()

    def note(wish: Wish) -> None:
        with diary.open("a") as file:
            file.write(f"{wish.error.code.value if wish.error else ANSWERED}\n")

    try:
        for job in asker.records.jobs():
            wish = await asker.resume(job)
            if wish.error is not None and wish.error.code is Code.NOT_FOUND:
                with (diary.parent / UNHEARD).open("a") as file:  # it died before it handed it in
                    file.write(f"{job.hex()}\n")
            else:
                note(wish)
        tries = 0
        while diary.read_text().split().count(ANSWERED) < wishes and tries < wishes * TRIES_MAX:
            wish = await asker.ask(rng.randint(30, 120), tries=8)
            if wish.error is not None and wish.error.code is Code.MODEL_NOT_FOUND:
                await asyncio.sleep(0.2)  # no node has attached yet, or all of them are dead
                continue
            note(wish)
            tries += 1
    finally:
        await asker.pool.close()


@dataclass
class Massacre:
    """A coordinator that lives, and members that die."""

    seed: int
    nodes: int
    clients: int
    wishes: int  # of each client
    every_s: float
    kills: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    async def run(self) -> Massacre:
        """All of it."""
        quiet()
        with tempfile.TemporaryDirectory(prefix="kills-") as made:
            root = Path(made)
            premises = premises_in(root)
            work = partial(self._kill_and_replace, root, premises.port)
            self.problems += await beside_a_coordinator(premises, work, LIMIT_S)
            await self._look(root, premises)
        return self

    async def _kill_and_replace(self, root: Path, port: int) -> None:
        """Until every client has what it wants."""
        rng = random.Random(self.seed)
        lives: dict[str, tuple[Any, tuple[Any, ...]]] = {}
        for number in range(self.nodes):
            lives[f"node {number}"] = live_as_node, (root, port, number)
        for number in range(self.clients):
            lives[f"client {number}"] = live_as_client, (root, port, number, self.wishes)
        living = {name: begin(work, *where) for name, (work, where) in lives.items()}
        due_s, told = time.monotonic() + self.every_s, dict.fromkeys(living, 0)
        try:
            while busy := [name for name in living if "client" in name and living[name].is_alive()]:
                await asyncio.sleep(0.05)
                for name in living:
                    if living[name].exitcode not in (None, 0):
                        self.problems.append(f"{name} ended with {living[name].exitcode}")
                        return
                lines = {name: self._lines(root, name) for name in living}
                # Somebody must have got somewhere since, or on a slow machine nobody ever would.
                ready = [name for name in busy if lines[name] > told[name]]
                if not ready or time.monotonic() < due_s:
                    continue
                nodes = [name for name in living if "node" in name]
                name = rng.choice(nodes if self.kills["node"] <= self.kills["client"] else ready)
                await kill(living[name])
                self.kills[name.split()[0]] += 1
                work, where = lives[name]
                living[name] = begin(work, *where)
                due_s, told = time.monotonic() + self.every_s, lines
        finally:
            for process in living.values():
                await kill(process)

    def _lines(self, root: Path, name: str) -> int:
        """What a client has written down so far."""
        try:
            return len((root / name.replace(" ", "-") / "diary").read_text().split())
        except FileNotFoundError:  # a node, or a client that has not come up yet
            return 0

    async def _look(self, root: Path, premises: Premises) -> None:
        for number in range(self.clients):
            if not self._lines(root, f"client {number}"):
                self.problems.append(f"client {number} never got anywhere")
                continue
            self.outcomes += Counter((root / f"client-{number}" / "diary").read_text().split())
            for receipt in (root / f"client-{number}" / "receipts").rglob("*"):
                try:
                    if receipt.is_file():
                        verify_file(receipt)
                except NovaMeshError as error:
                    self.problems.append(f"a receipt does not verify: {error}")
        if self.outcomes[ANSWERED] < self.clients * self.wishes:
            self.problems.append(f"not everybody was answered: {dict(self.outcomes)}")
        odd = set(self.outcomes) - {ANSWERED} - {code.value for code in HARMLESS}
        self.problems += [f"a client was told {code}" for code in odd]
        if await _admitted(premises) & _unheard(root):
            self.problems.append("the pool denied a job that is in its log")
        found = [problem async for problem in problems(premises.folder, [])]
        self.problems += [problem for problem in found if not problem.startswith("nobody was")]


def _unheard(root: Path) -> set[str]:
    """Jobs that a client resumed and the pool said that it never got them."""
    files = root.glob(f"client-*/{UNHEARD}")
    return {job for file in files for job in file.read_text().split()}


async def _admitted(premises: Premises) -> set[str]:
    """The jobs of the log, in hexadecimal digits."""
    store = await open_store(premises.folder / "coordinator.db")
    try:
        return {row.job.hex() async for row in store.rows() if row.job is not None}
    finally:
        await store.close()


def main() -> int:
    """Kill; 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    began_s = time.monotonic()
    story = Massacre(options.seed, nodes=8, clients=8, wishes=options.jobs // 8, every_s=2.0)
    done = asyncio.run(story.run())
    print(f"kills {dict(done.kills)}, outcomes {dict(done.outcomes)}")
    print(f"{len(done.problems)} problems {done.problems[:5]}, {time.monotonic() - began_s:.0f} s")
    return bool(done.problems)


if __name__ == "__main__":
    sys.exit(main())
