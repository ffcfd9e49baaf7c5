"""What a path adds to a job: fake engines that need no time, everything else as in production.

    PYTHONPATH=tests python benchmarks/paths.py MODE [--seconds N]

reverse   one job at a time through the coordinator: from its acceptance to the first byte
relay     2 000 chunks of one token a second through the coordinator, long answers: its CPU
direct    one job at a time of a node that is asked itself, over TLS
tunnel    the same through a libp2p tunnel, which is open already
beside    a small job that is handed in with one of 896 KiB for the same node, and without

The coordinator is a process of its own, started as its owner starts it, with TLS and a database on
disk; nodes and clients are this process. A node that is asked itself is one of its own. Exits 1
when a bar is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, Final

import uvloop
from load.figures import Figure
from load.listening import Caller as OwnCaller
from load.listening import listening, tunnel
from load.nodes import Answers, FakeNode, dial, now_ms
from load.process import serving

from support.actors import ClientActor
from support.memory_channel import Caller
from support.parties import COORDINATOR, OFFER

STREAMS: Final = 20
CHUNKS_PER_S: Final = 100  # of each stream
TOKENS_MAX: Final = 6_000  # of an answer, and what a fake model can
NODES: Final = 4
LARGE_CHARS: Final = 880 * 1024
WARM_UP: Final = 20
ROUNDS: Final = 30
SETTLE_S: Final = 2.0
_PASSED: Final = "novamesh_relay_chunks"


class Asker:
    """One client on a connection of its own."""

    _numbers = itertools.count()

    def __init__(self, name: str, answers: Answers) -> None:
        self._actor = ClientActor(name, COORDINATOR.node_id)
        self._answers = answers

    async def join(self, address: str) -> None:
        """Connect and become a member."""
        self._caller = Caller((await dial(address)).channel)
        await self._caller.join(self._actor.claim(now_ms()))

    async def ask(self, text: str = "What is 2 + 3?", deadline_s: float = 10.0) -> float:
        """One job to its end; seconds from its acceptance to the first chunk of its answer."""
        actor, caller = self._actor, self._caller
        found = await caller.match(actor.match(now_ms(), max_tokens=TOKENS_MAX))
        key = f"job-{next(self._numbers)}"
        order = actor.seal(
            [found[0].descriptor], now_ms(), key=key, text=text, max_tokens=TOKENS_MAX
        )
        await caller.submit(order, (found[0].reservation,))
        accepted_s, first_s = time.perf_counter(), 0.0
        async for event in caller.watch(actor.watch(order.id, now_ms()), deadline_s):
            if event.chunk is not None and not first_s:
                first_s = time.perf_counter()
        attempt = self._answers.done.pop(order.id)
        self._answers.first_sent.pop(order.id)
        await caller.countersign(actor.countersign(attempt, now_ms()))
        return first_s - accepted_s


async def reverse(options: argparse.Namespace) -> list[Figure]:
    """One job after the other."""
    with serving() as pool:
        answers = Answers(chunks=4)
        (asker,) = await _gather(pool.address, answers, askers=1, nodes=1)
        taken, ends_s = [], time.monotonic() + options.seconds
        while time.monotonic() < ends_s:
            taken.append(await asker.ask())
    return _first_bytes(taken, most_ms=10.0)


async def direct(options: argparse.Namespace) -> list[Figure]:
    """One job after the other."""
    with listening(mesh=False) as node:
        return await _alone(node["endpoint"], options.seconds, most_ms=5.0)


async def tunnelled(options: argparse.Namespace) -> list[Figure]:
    """One job after the other."""
    with listening(mesh=True) as node:
        async with tunnel(node) as endpoint:
            return await _alone(endpoint, options.seconds, most_ms=20.0)


async def _alone(endpoint: str, seconds: float, most_ms: float) -> list[Figure]:
    caller = OwnCaller(endpoint)
    try:
        for _ in range(WARM_UP):
            await caller.ask()
        taken, ends_s = [], time.monotonic() + seconds
        while time.monotonic() < ends_s:
            taken.append(await caller.ask())
    finally:
        await caller.close()
    return _first_bytes(taken, most_ms)


def _first_bytes(taken: list[float], most_ms: float) -> list[Figure]:
    cuts = statistics.quantiles(taken, n=100)
    return [
        Figure("jobs", len(taken), ""),
        Figure("acceptance to first byte, p50", cuts[49] * 1000, "ms", most=most_ms),
        Figure("acceptance to first byte, p99", cuts[98] * 1000, "ms"),
    ]


async def relay(options: argparse.Namespace) -> list[Figure]:
    """Many streams, a token a chunk: what passing on costs, without what begins and ends a job."""
    with serving() as pool:
        chunks = int(CHUNKS_PER_S * (options.seconds + 2 * SETTLE_S))
        answers = Answers(chunks=chunks, tokens=1, gap_s=1 / CHUNKS_PER_S)
        askers = await _gather(pool.address, answers, STREAMS, NODES)
        deadline_s = 4 * (options.seconds + 2 * SETTLE_S)
        jobs = [asyncio.create_task(asker.ask(deadline_s=deadline_s)) for asker in askers]
        await asyncio.sleep(SETTLE_S)
        cpu_s, passed = pool.usage().cpu_s, await asyncio.to_thread(pool.gauge, _PASSED)
        began_s = time.perf_counter()
        await asyncio.sleep(options.seconds)
        took_s, cpu_s = time.perf_counter() - began_s, pool.usage().cpu_s - cpu_s
        passed = await asyncio.to_thread(pool.gauge, _PASSED) - passed
        await asyncio.gather(*jobs)
    return [
        Figure("chunks relayed a second", passed / took_s, ""),
        Figure("coordinator's CPU", cpu_s / took_s * 100, "% of a core"),
        Figure("CPU at 2 000 chunks/s", cpu_s / passed * 2_000 * 100, "% of a core", most=60),
        Figure("CPU a chunk", cpu_s / passed * 1_000_000, "µs"),
    ]


async def beside(options: argparse.Namespace) -> list[Figure]:
    """A small job alone, and right behind a large one."""
    with serving() as pool:
        answers = Answers(chunks=4)
        large, small = await _gather(pool.address, answers, askers=2, nodes=1)
        text = "x" * LARGE_CHARS
        alone, behind, heavy = [], [], []
        for _ in range(ROUNDS):
            alone.append(await small.ask())
        for _ in range(ROUNDS):
            first = asyncio.create_task(large.ask(text))
            behind.append(await small.ask())
            heavy.append(await first)
    return [
        Figure("small job alone, p50", statistics.median(alone) * 1000, "ms"),
        Figure(
            "small job with a large one, p50", statistics.median(behind) * 1000, "ms", most=100.0
        ),
        Figure("small job with a large one, worst", max(behind) * 1000, "ms"),
        Figure("the large job itself, p50", statistics.median(heavy) * 1000, "ms"),
    ]


async def _gather(address: str, answers: Answers, askers: int, nodes: int) -> list[Asker]:
    """Everybody joins; some jobs warm everything up."""
    clients = [Asker(f"client-{n}", answers) for n in range(askers)]
    for client in clients:
        await client.join(address)
    for number in range(nodes):
        node = FakeNode(f"node-{number}", 64, answers)
        offer = replace(OFFER, context_max=2 * TOKENS_MAX)
        node.actor.advert = node.actor.descriptor(now_ms(), models=(offer,))
        await node.attach(address)
    kept = answers.gap_s, answers.chunks
    answers.gap_s, answers.chunks = 0.0, 4
    for number in range(WARM_UP):
        await clients[number % askers].ask()
    answers.gap_s, answers.chunks = kept
    await asyncio.sleep(SETTLE_S)
    return clients


MODES: Final[dict[str, Callable[[argparse.Namespace], Coroutine[Any, Any, list[Figure]]]]] = {
    "reverse": reverse, "direct": direct, "tunnel": tunnelled, "relay": relay, "beside": beside,
}  # fmt: skip


def main() -> int:
    """Measure, tell."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("mode", choices=MODES)
    parser.add_argument("--seconds", type=float, default=20.0)
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
