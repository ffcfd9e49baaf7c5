"""What honest members notice while somebody attacks their coordinator: the p99 of their jobs.

    PYTHONPATH=tests python benchmarks/hostile.py [--rounds 3] [--only NAME] [--json]

A real coordinator, honest parties in this process, each attacker in a process of its own that is
niced by 10, dials from an address of its own, and has its processor time reported apart. Rounds
without and with the attack alternate; the ratio is of the two next to each other, and the median
over the rounds counts. Floods are run twice: over a line of 40 Mbit/s up, as a home has at most,
and as fast as the attacker's own processor allows, which on a small machine is partly the
attacker's load and not the coordinator's. Exit status 1 where a home line makes the p99 more than
twice what it is, or an honest job fails.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

import grpc.aio

from novamesh_proto.errors import NovaMeshError
from support.hostile.attacks import FLOODS, SLOW
from support.hostile.coordinator import Victim, serve
from support.hostile.honest import HonestClient, HonestNode, Pace

TESTS: Final = Path(__file__).parent.parent / "tests"
LINE_BYTES_PER_S: Final = 5_000_000.0  # 40 Mbit/s
BAR: Final = 2.0
JOBS_PER_S: Final = 25.0
CLIENTS: Final = 4
WARM_UP_S: Final = 3.0  # of an attack
FAILED_S: Final = 20.0  # what a job that failed counts as
END_S: Final = 20.0


@dataclass
class Row:
    """One attack: medians over the rounds."""

    attack: str
    line: str
    clean_ms: list[float] = field(default_factory=list)
    attacked_ms: list[float] = field(default_factory=list)
    failed: int = 0
    jobs: int = 0
    attacker_cpu: list[float] = field(default_factory=list)  # of a core
    coordinator_cpu: list[float] = field(default_factory=list)
    memory_mib: float = 0.0  # resident, at most
    did: dict[str, float] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """The p99 under attack over the clean one beside it."""
        return statistics.median(
            a / c for a, c in zip(self.attacked_ms, self.clean_ms, strict=True)
        )

    @property
    def missed(self) -> bool:
        """Whether it must hold the bar and does not."""
        return self.line != "any" and (self.ratio > BAR or self.failed > 0)


@dataclass
class Honest:
    """Jobs at a steady rate."""

    clients: list[HonestClient]
    taken_s: list[float] = field(default_factory=list)
    failed: int = 0

    async def work(self, seconds: float) -> float:
        """Begin jobs for so long, wait for all; their p99 in ms."""
        self.taken_s = []
        began_s = time.monotonic()
        async with asyncio.TaskGroup() as jobs:
            for number in range(int(seconds * JOBS_PER_S)):
                await asyncio.sleep(max(0.0, began_s + number / JOBS_PER_S - time.monotonic()))
                jobs.create_task(self._job(self.clients[number % len(self.clients)]))
        return sorted(self.taken_s)[int(len(self.taken_s) * 0.99)] * 1_000

    async def _job(self, client: HonestClient) -> None:
        try:
            async with asyncio.timeout(FAILED_S):
                self.taken_s.append((await client.job()).seconds)
        except (NovaMeshError, grpc.aio.AioRpcError, TimeoutError) as error:
            self.failed += 1
            self.taken_s.append(FAILED_S)
            print(f"a job failed: {error}", file=sys.stderr)


@contextlib.asynccontextmanager
async def attacked(victim: Victim, row: Row, here: str) -> AsyncIterator[None]:
    """The attack goes on while inside."""
    bytes_per_s = LINE_BYTES_PER_S if row.line == "home" else 0.0
    began_s, cpu_s = time.monotonic(), victim.cpu_s
    attacker = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "support.hostile.attacks", row.attack, str(victim.port), here,
        str(bytes_per_s), cwd=TESTS, stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        await asyncio.sleep(WARM_UP_S)
        yield
        took_s = time.monotonic() - began_s
        row.coordinator_cpu.append((victim.cpu_s - cpu_s) / took_s)
        row.memory_mib = max(row.memory_mib, victim.memory_bytes / 2**20)
        async with asyncio.timeout(END_S):
            told, _ = await attacker.communicate(b"")
        row.did = json.loads(told)
        row.attacker_cpu.append(row.did.pop("cpu_s") / took_s)
    finally:
        if attacker.returncode is None:
            attacker.kill()
            await attacker.wait()


async def measure(rows: list[Row], rounds: int, seconds: float) -> None:
    """All attacks, one after the other, that often."""
    addresses = (f"127.0.{high}.{low}" for high, low in itertools.product(range(1, 255), range(99)))
    with tempfile.TemporaryDirectory(prefix="hostile-") as folder, serve(Path(folder)) as victim:
        async with HonestNode("node", victim.address, Pace(), slots=64).attached():
            clients = [await HonestClient.join(f"c{n}", victim.address) for n in range(CLIENTS)]
            honest = Honest(clients)
            await honest.work(seconds)
            for row in rows * rounds:
                row.clean_ms.append(await honest.work(seconds))
                failed = honest.failed
                async with attacked(victim, row, next(addresses)):
                    row.attacked_ms.append(await honest.work(seconds))
                row.failed += honest.failed - failed
                row.jobs += len(honest.taken_s)
                print(
                    f"{row.attack} {row.clean_ms[-1]:.0f} {row.attacked_ms[-1]:.0f}",
                    file=sys.stderr,
                )
            for client in clients:
                await client.close()
        assert not victim.traces(), victim.traces()[:3]


def show(rows: list[Row]) -> None:
    """A table for people."""
    print(
        f"{'attack':<16} {'line':<5} {'clean p99':>9} {'attacked':>9} {'ratio':>6} {'failed':>7} "
        f"{'attacker CPU':>12} {'coordinator':>11} {'MiB':>5}"
    )
    for row in rows:
        clean, under = statistics.median(row.clean_ms), statistics.median(row.attacked_ms)
        his, ours = statistics.median(row.attacker_cpu), statistics.median(row.coordinator_cpu)
        print(
            f"{row.attack:<16} {row.line:<5} {clean:>6.0f} ms {under:>6.0f} ms {row.ratio:>6.2f} "
            f"{row.failed:>3}/{row.jobs:<3} {his:>12.2f} {ours:>11.2f} {row.memory_mib:>5.0f}"
            f"{'  missed' if row.missed else ''}"
        )


def main() -> int:
    """Exit status: 1 when the bar is missed."""
    parser = argparse.ArgumentParser(description="What honest members notice of an attack.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each half of a round")
    parser.add_argument("--only", default="", help="attacks whose name contains this")
    parser.add_argument("--line", choices=("home", "any"), help="only over this line")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    lines = {"home": (*SLOW, *FLOODS), "any": FLOODS}
    rows = [
        Row(attack.__name__, line)
        for line, attacks in lines.items()
        if options.line in (None, line)
        for attack in attacks
        if options.only in attack.__name__
    ]
    asyncio.run(measure(rows, options.rounds, options.seconds))
    if options.json:
        print(json.dumps([asdict(row) | {"ratio": row.ratio} for row in rows], indent=1))
    else:
        show(rows)
    return int(any(row.missed for row in rows))


if __name__ == "__main__":
    sys.exit(main())
