"""A real coordinator whose disk fails mid-job, and what its members see of it.

A disk that refuses: the answer under way goes on streaming, reads are served, new work is refused
with a word on what to do, nobody is told of a settlement that is not on disk; when the disk is well
again everything ends as it should, without a restart. On odd seeds the coordinator is killed with
SIGKILL while the disk refuses, and nothing that it had acknowledged may be missing. A slow disk:
everything works, only later, and deadlines hold.

`python -m support.disk_faults --rounds 20` does each of them so often, with every means there is.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from novamesh.clock import Clock
from novamesh.pool import PoolConnection
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import JobState
from support.bad_disks import DEAD, SLOW, BadDisk, Fault, Shim, SmallDisk, Traced, opened
from support.failpoints import quiet
from support.parties import party
from support.ports import free_port
from support.real_world import Asker, Premises, end, make_world, problems
from support.sim.parties import Client, Node, Pace, Wish

LIMIT_S: Final = 120.0
LONG: Final = 250  # tokens of the answer that is under way, at 20 ms
LATE: Final = 450  # of one that cannot be ready in time
TOGETHER: Final = 4
MEANS: Final = (Shim, Traced, SmallDisk)


@dataclass
class Trial:
    """One coordinator, one fault."""

    kind: type[Shim] | type[Traced] | type[SmallDisk]
    fault: Fault
    seed: int
    problems: list[str] = field(default_factory=list)
    hits: int = 0
    healing_s: float = 0.0
    page_s: float = 0.0  # the slowest answer of /healthz
    took_s: float = 0.0
    doing: str = "starting"

    @property
    def name(self) -> str:
        """What is done, and how."""
        return f"{self.fault.name} by {self.kind.__name__}"

    async def run(self) -> Trial:
        """All of it."""
        began_s = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="disk-") as made:
            root = Path(made)
            try:
                async with asyncio.timeout(LIMIT_S):
                    with opened(self.kind, root) as disk:
                        wishes = await self._live(root, disk)
                        shutil.copytree(disk.place, root / "kept")
                    self.problems += [p async for p in problems(root / "kept", wishes)]
            except TimeoutError:
                self.problems.append(f"not over within {LIMIT_S:g} s, {self.doing}")
            except (AssertionError, NovaMeshError) as error:
                self.problems.append(str(error))
        self.took_s = time.monotonic() - began_s
        return self

    async def _live(self, root: Path, disk: BadDisk) -> list[Wish]:
        premises = Premises(root / "coordinator", free_port(), free_port())
        premises.furnish(disk.place)
        self._home, self._disk, self._page = root, disk, premises.http_port
        self._process = await self._start()
        rng = random.Random(f"{self.name} {self.seed}")
        world = make_world(root, premises.port, rng)
        nodes = [Node(world, number, 2, Pace(0.01, 0.02)) for number in (0, 1)]
        steady, asker = Client(world, 0), Asker(world)
        steady.wishes += [Wish(4, 30.0, tries=20), Wish(LONG, 90.0, tries=20)]
        try:
            for one in (*nodes, steady):
                await one.start()
            self.doing = "waiting for an answer to be under way"
            begun = rng.randint(3, 40)
            await self._until(lambda: _tokens(steady.wishes[1]) > begun)
            await asker.pool.list_models()  # a member from now on
            watched = asyncio.create_task(self._time_pages())
            await (self._slowly if self.fault is SLOW else self._refusing)(steady, asker)
            watched.cancel()
            self.doing = "waiting for the long answer"
            await self._until(lambda: not steady.busy)
            long = steady.wishes[1]
            self._expect(long.completion is not None, f"the long answer is lost: {long.error}")
            self.doing = "asking on a disk that is well again"
            last = await asker.ask(tries=5)
            self._expect(last.completion is not None, f"no answer afterwards: {last.error}")
        finally:
            await asker.pool.close()
            await end((*nodes, steady))
            if self._process.returncode is None:
                self._process.kill()
            await self._process.wait()
        return [*steady.wishes, *(w for w in asker.wishes if w.completion is not None)]

    async def _refusing(self, steady: Client, asker: Asker) -> None:
        long, first = steady.wishes[1], steady.wishes[0].completion
        assert first is not None
        await self._disk.spoil(self.fault, self._process.pid)
        before = _tokens(long)
        self.doing = "being refused"
        await self._refuse(asker)
        await self._until_page(503)
        await self._refuse(asker)
        if self.fault is not DEAD:  # where nothing can be read either, nothing is told
            self.doing = "reading"
            await self._until(lambda: _tokens(long) > before + 10)
            await self._read(asker, first.job)
            await self._until(lambda: _tokens(long) == LONG)
        self._expect(long.completion is None, "a settlement was acknowledged that is on no disk")
        self.doing = "mending"
        if self.seed % 2:
            self._process.kill()
            await self._process.wait()
        self.hits = await self._disk.mend()
        mended_s = time.monotonic()
        if self.seed % 2:
            self._process = await self._start()
        await self._until_page(200)
        self.healing_s = time.monotonic() - mended_s

    async def _refuse(self, asker: Asker) -> None:
        """New work is refused, and the refusal says what to do."""
        wish = await asker.ask(deadline_s=15.0)
        error = wish.error
        if error is None or error.code is not Code.STORAGE:
            raise AssertionError(f"work was not refused as it should be: {error!r}")
        self._expect(bool(error.message and error.hint), f"what is to be done? {error.message!r}")

    async def _read(self, asker: Asker, job: object) -> None:
        """What is known is told."""
        self._expect(len(await asker.pool.list_models()) == 1, "the models are gone")
        self._expect(not await asker.pool.list_jobs(5), "a job that was refused is listed")
        own = PoolConnection(asker.pool.pool, party("client-0"), Clock.system(), 5.0)
        try:
            jobs = {view.job: view.state for view in await own.list_jobs(5)}
            self._expect(jobs.get(job) is JobState.SETTLED, "a settled job is not known")  # type: ignore[call-overload]
            view = await own.get_job(job)  # type: ignore[arg-type]
            self._expect(view.state is JobState.SETTLED, "a settled job is not settled")
        finally:
            await own.close()

    async def _slowly(self, steady: Client, asker: Asker) -> None:
        del steady
        await self._disk.spoil(self.fault, self._process.pid)
        self.doing = "asking on a slow disk"
        began_s = time.monotonic()
        wish = await asker.ask()
        self._expect(wish.completion is not None, f"no answer on a slow disk: {wish.error}")
        took_s = time.monotonic() - began_s
        self._expect(took_s >= self.fault.delay_ms / 1000, "the disk was not slow at all")
        began_s = time.monotonic()
        late = await asker.ask(LATE, deadline_s=6.0)
        asker.wishes.remove(late)
        code = late.error and late.error.code
        self._expect(code is Code.EXPIRED, f"a deadline of 6 s gave {late.error}")
        self._expect(time.monotonic() - began_s < 6 + 15, "a deadline was not held")
        self._expect(await self._ask_page() == 200, "a slow disk is taken for a broken one")
        self.hits = await self._disk.mend()
        self.healing_s = time.monotonic() - began_s
        states = [view.state for view in await asker.pool.list_jobs(5)]
        self._expect(states[0].terminal, f"the job with the deadline is {states[0]}")

    async def _start(self) -> Process:
        """As an owner starts it."""
        command = [str(Path(sys.executable).parent / "novamesh"), "coordinator", "serve"]
        process = await asyncio.create_subprocess_exec(
            *self._disk.command, *command, "--home", str(self._home), "--json",
            env=os.environ | self._disk.environment, stdout=PIPE, stderr=DEVNULL,
        )  # fmt: skip
        assert process.stdout is not None
        if not await process.stdout.readline():
            raise AssertionError(f"the coordinator ended with {await process.wait()}")
        return process

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await asyncio.sleep(0.02)
            if self._process.returncode not in (None, -9):
                raise AssertionError(f"the coordinator ended with {self._process.returncode}")

    async def _until_page(self, status: int) -> None:
        while await self._ask_page() != status:  # noqa: ASYNC110  nobody would tell
            await asyncio.sleep(0.02)

    async def _ask_page(self) -> int:
        """Status of /healthz; 0 while nobody answers."""
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._page)
        except OSError:
            return 0
        writer.write(b"GET /healthz HTTP/1.1\r\n\r\n")
        try:
            return int((await reader.readline()).split()[1])
        except (OSError, IndexError):
            return 0
        finally:
            writer.close()

    async def _time_pages(self) -> None:
        while True:
            began_s = time.monotonic()
            await self._ask_page()
            self.page_s = max(self.page_s, time.monotonic() - began_s)
            await asyncio.sleep(0.1)

    def _expect(self, so: bool, problem: str) -> None:
        if not so:
            self.problems.append(problem)


def _tokens(wish: Wish) -> int:
    return sum(len(piece.token_ids) for piece in wish.pieces)


async def campaign(trials: list[Trial], together: int = TOGETHER) -> list[Trial]:
    """All of them, a few at the same time."""
    quiet()
    room = asyncio.Semaphore(together)

    async def one(trial: Trial) -> Trial:
        async with room:
            return await trial.run()

    return list(await asyncio.gather(*map(one, trials)))


def table(trials: list[Trial]) -> Iterator[str]:
    """A line for each fault and means."""
    for name in dict.fromkeys(trial.name for trial in trials):
        mine = [trial for trial in trials if trial.name == name]
        wrong = [problem for trial in mine for problem in trial.problems]
        counts = f"{len(mine):4} trials {sum(t.hits for t in mine):6} calls"
        healing_s = statistics.median(t.healing_s for t in mine)
        times = (
            f"well after {healing_s:4.1f} s, /healthz at most {max(t.page_s for t in mine):5.2f} s"
        )
        yield f"{name:24}{counts}  {times}  {wrong[:3] or 'ok'}"


def main() -> int:
    """Spoil every disk there is; 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", default="", help="trials whose name contains this")
    options = parser.parse_args()
    trials = []
    for kind in MEANS:
        if lack := kind.lacks():
            print(f"{kind.__name__}: not done, this machine lacks {lack}")
            continue
        rounds = range(options.rounds)
        trials += [Trial(kind, fault, seed) for seed in rounds for fault in kind.faults]
    began_s = time.monotonic()
    done = asyncio.run(campaign([t for t in trials if options.only in t.name]))
    print(*table(done), sep="\n")
    wrong = sum(bool(trial.problems) for trial in done)
    print(f"{len(done)} trials, {wrong} wrong, {time.monotonic() - began_s:.0f} s")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
