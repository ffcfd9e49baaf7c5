"""What a coordinator costs and bears: fake engines, everything else as in production.

    PYTHONPATH=tests python benchmarks/coordinator.py MODE [--rate N] [--seconds N] [--chunks N]

steady    jobs at a steady rate; floor = a server that answers the same calls without thinking
core      steps of the core alone, no I/O, no signatures
overload  ten times as many jobs as the nodes can take
snapshot  how long a commit waits while snapshots of a long state are written, without gRPC
idle      attached nodes that get no work
latency   one job at a time: what lies between the engine and the client
soak      a low rate for long: memory, file descriptors and tasks at the end

The coordinator is a process of its own, started as its owner starts it, with TLS and a database on
disk; nodes and clients are this process, whose CPU is told apart. Exits 1 when a bar is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import uvloop
from load import floor
from load.clients import Crowd, Seen
from load.figures import Figure
from load.long_state import long_state
from load.nodes import Answers, FakeNode
from load.process import Coordinator, serving

from support.table import Table

NODES: Final = 4
SLOTS: Final = 64
CLIENTS: Final = 64
CONNECTIONS: Final = 16
IDLE_NODES: Final = 1_000
FLOOR_S: Final = 20.0
LONG_STATE_JOBS: Final = 60_000  # ten minutes of a hundred a second
WARM_UP: Final = 50
SETTLE_S: Final = 6.0  # connections and calls that end


@dataclass
class Stage:
    """A coordinator with nodes and clients, ready."""

    pool: Coordinator
    answers: Answers
    crowd: Crowd
    nodes: list[FakeNode] = field(default_factory=list)

    async def open(self, nodes: int, slots: int) -> None:
        """Everybody joins; some jobs warm everything up."""
        await self.crowd.join(self.pool.address)
        self.nodes += [FakeNode(f"node-{n}", slots, self.answers) for n in range(nodes)]
        for node in self.nodes:
            await node.attach(self.pool.address)
        for _ in range(WARM_UP):
            await self.crowd.ask(Seen())

    async def run(self, rate: float, seconds: float) -> Seen:
        """Jobs at a rate, whether the ones before are done or not, until all are over."""
        seen, began_s, jobs = Seen(), time.perf_counter(), set[asyncio.Task[None]]()
        for number in range(int(rate * seconds)):
            task = asyncio.create_task(self.crowd.ask(seen))
            jobs.add(task)
            task.add_done_callback(jobs.discard)
            await asyncio.sleep(max(0.0, began_s + number / rate - time.perf_counter()))
        await asyncio.gather(*jobs)
        return seen


def stage(pool: Coordinator, chunks: int, work_s: float = 0.0) -> Stage:
    """Nobody is there yet."""
    answers = Answers(chunks, work_s=work_s)
    return Stage(pool, answers, Crowd(CLIENTS, CONNECTIONS, answers))


async def steady(options: argparse.Namespace) -> list[Figure]:
    """Jobs at a steady rate."""
    with serving() as pool:
        here = stage(pool, options.chunks)
        await here.open(NODES, SLOTS)
        before, own_s, began_s = pool.usage(), time.process_time(), time.perf_counter()
        seen = await here.run(options.rate, options.seconds)
        took_s = time.perf_counter() - began_s
        own_ms = (time.process_time() - own_s) * 1000
        cpu_ms = (pool.usage().cpu_s - before.cpu_s) * 1000
    floor_ms = await floor.measure(options.rate, min(options.seconds, FLOOR_S), options.chunks)
    jobs = max(1, seen.answered)
    return [
        Figure("jobs answered a second", seen.answered / took_s, "", least=options.rate * 0.97),
        Figure("jobs not answered", len(seen.failed) + len(seen.refused), "", most=0),
        Figure("coordinator's CPU a job", cpu_ms / jobs, "ms", most=2.0),
        Figure("of it what gRPC alone takes (floor)", floor_ms, "ms"),
        Figure("generator's CPU a job", own_ms / jobs, "ms"),
        *_latency("admission", seen.admit, p99_ms=50.0),
        *_latency("whole job", seen.whole),
        *_why(seen),
    ]


async def core(options: argparse.Namespace) -> list[Figure]:
    """Steps of the core alone."""
    table = Table(open_pool=True)
    spent_s, steps, usual = 0.0, 0, table.core.step

    def timed(*arguments: Any) -> Any:
        nonlocal spent_s, steps
        began_s = time.process_time()
        outcome = usual(*arguments)
        spent_s, steps = spent_s + time.process_time() - began_s, steps + 1
        return outcome

    table.core.step = timed  # type: ignore[method-assign]
    client, node = table.client(), table.node(slots=SLOTS)
    ends_s = time.monotonic() + options.seconds
    for number in range(1_000_000):
        table.match(client)
        table.order(client, node, key=f"job-{number}")
        attempt = table.assigned(node)
        table.answer(attempt, chunks=options.chunks)
        table.countersign(client.countersign(attempt, table.now_ms))
        table.log.clear()
        table.effects.clear()
        if time.monotonic() > ends_s:
            break
    return [Figure("steps of the core a second", steps / spent_s, "", least=5_000)]


async def overload(options: argparse.Namespace) -> list[Figure]:
    """Ten times as many jobs as nodes can take; capacity is measured first, in the same run."""
    work_s, slots = 0.8, 4  # of 2 nodes: 10 jobs a second at most
    with serving() as pool:
        here = stage(pool, 1, work_s)
        await here.open(0, slots)
        here.nodes += [FakeNode(f"node-{n}", slots, here.answers) for n in range(2)]
        for node in here.nodes:
            await node.attach(pool.address)
        capacity = 2 * slots / work_s
        calm = await here.run(capacity, options.seconds)
        stormy = await here.run(capacity * 10, options.seconds)
    goodput, peak = stormy.answered / options.seconds, calm.answered / options.seconds
    return [
        Figure("offered in the storm", capacity * 10, "jobs/s"),
        Figure("answered when offered what fits", peak, "jobs/s"),
        Figure("answered in the storm", goodput, "jobs/s", least=peak * 0.9),
        Figure("refused in the storm", len(stormy.refused) / options.seconds, "jobs/s"),
        *_latency("refusal", stormy.refused, p99_ms=50.0),
        *_why(stormy),
    ]


async def snapshot(options: argparse.Namespace) -> list[Figure]:
    """Steps that are committed one by one, at a rate, with and without snapshots on the way."""
    taken: dict[str, list[float]] = {"without": [], "with": []}
    written = 0
    for kind, every in (("without", 1 << 40), ("with", int(options.rate * options.seconds / 5))):
        async with long_state(LONG_STATE_JOBS, every) as pool:
            joins, began_s = [], time.perf_counter()
            for number in range(int(options.rate * options.seconds)):
                joins.append(asyncio.create_task(pool.submit(pool.join(number))))
                await asyncio.sleep(max(0.0, began_s + number / options.rate - time.perf_counter()))
            taken[kind] = await asyncio.gather(*joins)
            written = pool.store.snapshot_seq
    return [
        Figure("jobs in the state", LONG_STATE_JOBS, ""),
        Figure("events before the newest snapshot", written, "", least=1),
        *_latency("commit without snapshots", taken["without"]),
        *_latency("commit with snapshots", taken["with"], p99_ms=50.0),
        Figure("longest with snapshots", max(taken["with"]) * 1000, "ms"),
        Figure("longest without", max(taken["without"]) * 1000, "ms"),
    ]


async def idle(options: argparse.Namespace) -> list[Figure]:
    """Nodes that get no work."""
    with serving() as pool:
        bare = pool.usage()
        answers, room = Answers(), asyncio.Semaphore(32)

        async def attach(number: int) -> FakeNode:
            async with room:
                node = FakeNode(f"node-{number}", 2, answers)
                await node.attach(pool.address)
                return node

        nodes = await asyncio.gather(*map(attach, range(IDLE_NODES)))
        await asyncio.sleep(SETTLE_S)
        before, attached = (
            pool.usage(),
            await asyncio.to_thread(pool.gauge, "novamesh_nodes_attached"),
        )
        await asyncio.sleep(options.seconds)
        after = pool.usage()
        await asyncio.gather(*(node.detach() for node in nodes))
    used = (after.cpu_s - before.cpu_s) / options.seconds * 100
    return [
        Figure("nodes attached", attached, "", least=IDLE_NODES),
        Figure("memory", after.rss_mb, "MB", most=1_000),
        Figure("of it before the first node", bare.rss_mb, "MB"),
        Figure("CPU", used, "% of a core", most=10),
    ]


async def latency(options: argparse.Namespace) -> list[Figure]:
    """One job after the other."""
    with serving() as pool:
        here = stage(pool, options.chunks)
        await here.open(1, SLOTS)
        seen, ends_s = Seen(), time.monotonic() + options.seconds
        while time.monotonic() < ends_s:
            await here.crowd.ask(seen)
    return [
        Figure("jobs", seen.answered, ""),
        *_latency("engine's first chunk to the client", seen.relay, p50_ms=10.0),
        *_latency("submission to the first chunk", seen.first, p50_ms=25.0),
        *_latency("admission", seen.admit),
        *_why(seen),
    ]


async def soak(options: argparse.Namespace) -> list[Figure]:
    """A low rate for long."""
    with serving() as pool:
        here = stage(pool, options.chunks)
        await here.open(NODES, SLOTS)
        await asyncio.sleep(SETTLE_S)
        start, tasks = pool.usage(), await asyncio.to_thread(pool.gauge, "novamesh_tasks")
        samples: list[tuple[float, float]] = []
        watching = asyncio.create_task(_sample(pool, samples))
        seen = await here.run(options.rate, options.seconds)
        watching.cancel()
        await asyncio.sleep(SETTLE_S)
        end, tasks_end = pool.usage(), await asyncio.to_thread(pool.gauge, "novamesh_tasks")
    late = samples[len(samples) * 2 // 3 :]  # jobs are kept for half an hour: until then it grows
    slope = statistics.linear_regression(*zip(*late, strict=True)).slope * 3_600
    return [
        Figure("jobs answered", seen.answered, ""),
        Figure("jobs not answered", len(seen.failed) + len(seen.refused), "", most=0),
        Figure("memory at the start", start.rss_mb, "MB"),
        Figure("memory at the end", end.rss_mb, "MB"),
        Figure("slope of the last third", slope, "MB/h", most=1.0),
        Figure("more file descriptors than at the start", end.fds - start.fds, "", most=0),
        Figure("more tasks than at the start", tasks_end - tasks, "", most=0),
        Figure("threads at the end", end.threads, ""),  # some are made when first needed
        *_why(seen),
    ]


async def _sample(pool: Coordinator, samples: list[tuple[float, float]]) -> None:
    while True:
        samples.append((time.monotonic(), pool.usage().rss_mb))
        await asyncio.sleep(5)


def _latency(
    name: str, seconds: list[float], p50_ms: float | None = None, p99_ms: float | None = None
) -> Iterator[Figure]:
    if len(seconds) < 2:
        return
    cuts = statistics.quantiles(seconds, n=100)
    yield Figure(f"{name}, p50", cuts[49] * 1000, "ms", most=p50_ms)
    yield Figure(f"{name}, p99", cuts[98] * 1000, "ms", most=p99_ms)


def _why(seen: Seen) -> Iterator[Figure]:
    for why in sorted(set(seen.failed)):
        yield Figure(why[:40], seen.failed.count(why), "times", most=0)
    for why in sorted(set(seen.busy)):
        yield Figure(why[:40], seen.busy.count(why), "times")


MODES: Final[dict[str, Callable[[argparse.Namespace], Coroutine[Any, Any, list[Figure]]]]] = {
    "steady": steady, "core": core, "overload": overload,
    "snapshot": snapshot, "idle": idle, "latency": latency, "soak": soak,
}  # fmt: skip


def main() -> int:
    """Measure, tell."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("mode", choices=MODES)
    parser.add_argument("--rate", type=float, default=100.0, help="jobs a second")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--chunks", type=int, default=4, help="of an answer")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures = uvloop.run(MODES[options.mode](options))
    if options.json:
        print(json.dumps({figure.name: figure.value for figure in figures}))
    else:
        print(*figures, sep="\n")
    return int(any(figure.missed for figure in figures))


if __name__ == "__main__":
    sys.exit(main())
