"""The world in one object: a pool, its nodes and clients, and everything that goes wrong with them.

One seed decides all of it: who lies, what breaks when, what gets lost. The same seed gives the same
run, event for event; `trace` is what happened.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import random
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import structlog

from novamesh_node.session import Stream
from support.sim.liars import LIES, Liar
from support.sim.loop import VirtualLoop
from support.sim.network import Network, Weather
from support.sim.parties import Client, Coordinator, Node, Pace, Wish, World
from support.sim.rpc import Hosts

HOUR_MS = 3_600_000
STORM_S = 60.0  # in which things break
HEALING_S = 15.0
"""After the last deadline: by then every job must have ended."""
WRITTEN = ("AttemptAccepted", "AttemptEnded", "AttemptSettled", "JobAdmitted", "JobEnded")
BUGS = frozenset({"attempt failed", "a message was dropped", "the engine failed", "a call failed",
                  "a stream failed", "a tick failed"})  # fmt: skip


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong at a moment."""

    at_s: float
    name: str
    strike: Callable[[], Awaitable[None]]


class Swarm:
    """One run."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.loop = VirtualLoop()
        self.trace: list[str] = []
        self.surprises: list[str] = []
        self.unfinished: list[str] = []
        self._returning: list[asyncio.Task[None]] = []
        network = Network(self.loop, random.Random(self.rng.getrandbits(64)), self.note)
        self.world = World(self.loop, network, Hosts(network), self.rng, self.note, folder)
        self.coordinator = Coordinator(self.world)
        self.honest = True
        self.calm = False  # nothing breaks and nobody lies
        self.nodes = [self._node(number) for number in range(self.rng.randint(1, 4))]
        self.clients = [self._client(number) for number in range(self.rng.randint(1, 3))]

    @property
    def digest(self) -> str:
        """What two runs are compared by."""
        return hashlib.sha256("\n".join(self.trace).encode()).hexdigest()

    def note(self, text: str) -> None:
        """Write down what happened."""
        self.trace.append(f"{self.loop.now_s - 1000:9.3f}  {text}")

    def run(self) -> None:
        """All of it."""
        self.loop.set_exception_handler(self._surprised)
        with self._instead(), self._quiet():
            try:
                self.loop.run_until_complete(self._live())
            finally:
                _end(self.loop)

    async def _live(self) -> None:
        await self.coordinator.start()
        for node in self.nodes:
            await node.start()
        await asyncio.sleep(self.rng.uniform(0, 1))
        for client in self.clients:
            await client.start()
        began_s = self.loop.time()
        faults = self._faults()
        # A slot for everybody, however slow, beside the one that an impatient client has just left.
        room = sum(node.slots for node in self.nodes) >= 2 * len(self.clients)
        self.calm = self.honest and not faults and room
        for fault in sorted(faults, key=lambda fault: fault.at_s):
            await asyncio.sleep(max(0.0, began_s + fault.at_s - self.loop.time()))
            self.note(f"fault: {fault.name}")
            await fault.strike()
        await asyncio.sleep(max(0.0, began_s + STORM_S - self.loop.time()))
        await self._heal()
        await self._finish()

    def _node(self, number: int) -> Node:
        rng = self.rng
        pace = Pace(rng.choice((0.02, 0.3, 2.0, 20.0)), rng.choice((0.004, 0.02, 0.2)))
        node = Node(self.world, number, rng.randint(1, 3), pace)
        if rng.random() < 0.35:
            name = rng.choice(sorted(LIES))
            self.note(f"{node.name} lies: {name}")
            self.honest = False
            secret = random.Random(rng.getrandbits(64))

            def tamper(stream: Stream) -> Stream:
                return Liar(stream, node.key, LIES[name], secret)

            node.tamper = tamper
        return node

    def _client(self, number: int) -> Client:
        client, rng = Client(self.world, number), self.rng
        for _ in range(rng.randint(1, 4)):
            stop = rng.randint(1, 3) if rng.random() < 0.15 else None
            tokens, deadline_s = rng.randint(1, 40), rng.choice((5.0, 20.0, 45.0))
            client.wishes.append(Wish(tokens, deadline_s, stop, tries=3))
        return client

    def _faults(self) -> list[Fault]:
        kinds = (
            self._weather, self._kill_pool, self._kill_writing_pool, self._kill_writing_pool,
            self._kill_node, self._kill_client, self._cut, self._disk, self._clock, self._flicker,
        )  # fmt: skip
        count = self.rng.choice((0, 1, 2, 3, 5, 8))
        return [
            Fault(self.rng.uniform(0, STORM_S * 0.7), *self.rng.choice(kinds)())
            for _ in range(count)
        ]

    def _weather(self) -> tuple[str, Callable[[], Awaitable[None]]]:
        rng = self.rng
        worse = Weather(
            delay_s=(0.001, rng.choice((0.02, 0.5))),
            lost=rng.choice((0.0, 0.05, 0.3)),
            twice=rng.choice((0.0, 0.3)),
            slow=rng.choice((0.0, 0.05)),
            snaps=rng.choice((0.0, 0.02)),
        )

        async def strike() -> None:
            self.world.network.weather = worse

        return f"{worse}", strike

    def _kill_pool(self) -> tuple[str, Callable[[], Awaitable[None]]]:
        return "kill pool", self._restart(self.coordinator)

    def _kill_writing_pool(self) -> tuple[str, Callable[[], Awaitable[None]]]:
        """While an event is written, slowly enough that whoever acts too early is seen."""
        kind, disk, kill = self.rng.choice(WRITTEN), self.coordinator.disk, self._kill_pool()[1]

        def spring() -> None:
            usual, disk.write_s = disk.write_s, (0.3, 0.3)

            async def later() -> None:
                await asyncio.sleep(0.2)
                disk.write_s = usual
                self.note(f"writing {kind}")
                await kill()

            self._returning.append(self.loop.create_task(later()))

        async def strike() -> None:
            disk.trap = kind, spring

        return f"kill pool as it writes {kind}", strike

    def _kill_node(self) -> tuple[str, Callable[[], Awaitable[None]]]:
        node = self.rng.choice(self.nodes)
        return f"kill {node.name}", self._restart(node)

    def _kill_client(self) -> tuple[str, Callable[[], Awaitable[None]]]:
        client = self.rng.choice(self.clients)
        return f"kill {client.name}", self._restart(client)

    def _cut(self) -> tuple[str, Callable[[], Awaitable[None]]]:
        party = self.rng.choice([*self.nodes, *self.clients]).name
        pairs = [(party, "pool"), ("pool", party)]
        cut = pairs if self.rng.random() < 0.5 else [self.rng.choice(pairs)]
        seconds = self.rng.choice((0.5, 5.0, 20.0, 50.0))

        async def strike() -> None:
            for source, target in cut:
                self.world.network.cut(source, target, seconds)

        return f"cut {cut}", strike

    def _flicker(self) -> tuple[str, Callable[[], Awaitable[None]]]:
        """A line that drops every connection a few times, a moment apart."""
        party = self.rng.choice([*self.nodes, *self.clients]).name
        moments = [self.rng.uniform(0, 8) for _ in range(self.rng.randint(2, 12))]

        async def strike() -> None:
            for moment in moments:
                self.loop.call_later(moment, self.world.network.drop, party)

        return f"line of {party} flickers", strike

    def _disk(self) -> tuple[str, Callable[[], Awaitable[None]]]:
        disk, full = self.coordinator.disk, self.rng.random() < 0.5
        seconds = self.rng.choice((0.3, 3.0, 10.0))

        def mend() -> None:
            disk.full, disk.write_s = False, (0.0005, 0.008)

        async def strike() -> None:
            disk.full = full
            disk.write_s = disk.write_s if full else (0.5, 2.0)
            self.loop.call_later(seconds, mend)

        return f"disk {'full' if full else 'slow'} for {seconds} s", strike

    def _clock(self) -> tuple[str, Callable[[], Awaitable[None]]]:
        party = self.rng.choice([*self.nodes, *self.clients])
        skew_ms = self.rng.choice((-2, 2)) * HOUR_MS

        async def strike() -> None:
            if party.process is not None:
                party.process.skew_ms = skew_ms

        return f"clock of {party.name} is {skew_ms // HOUR_MS} h off", strike

    def _restart(self, party: Any) -> Callable[[], Awaitable[None]]:
        away_s = self.rng.choice((0.05, 1.0, 8.0, 25.0))

        async def strike() -> None:
            await party.kill()
            again = asyncio.sleep(away_s)

            async def come_back() -> None:
                await again
                if party.process is None:
                    await party.start()

            self._returning.append(asyncio.create_task(come_back()))

        return strike

    async def _heal(self) -> None:
        """Everything works again, and everybody is back."""
        self.note("healing")
        self.world.network.clear()
        self.coordinator.disk.full, self.coordinator.disk.trap = False, None
        self.coordinator.disk.write_s = (0.0005, 0.008)
        if self._returning:
            await asyncio.wait(self._returning)
        for party in (self.coordinator, *self.nodes, *self.clients):
            if party.process is not None:
                party.process.skew_ms = 0
            else:
                await party.start()

    async def _finish(self) -> None:
        """Until everybody is done, within the last deadline and some seconds."""
        latest_s = self.loop.time() + self._longest_s() + HEALING_S
        await self._until(lambda: not any(client.busy for client in self.clients), latest_s)
        self.unfinished += [client.name for client in self.clients if client.busy]
        door = self.coordinator.door
        assert door is not None
        await self._until(lambda: not door.sequencer.core.jobs.live_count(), latest_s)
        self.unfinished += [job.job.hex()[:8] for job in door.sequencer.core.jobs.live()]
        await asyncio.sleep(1.0)  # what is on its way to the disk gets there
        self.note(f"{len(self.coordinator.disk.rows)} events in the log")

    async def _until(self, over: Callable[[], bool], latest_s: float) -> None:
        while not over() and self.loop.time() < latest_s:  # noqa: ASYNC110  nobody would tell
            await asyncio.sleep(0.5)

    def _longest_s(self) -> float:
        """What is still wanted, one after the other."""
        return max(
            sum(wish.deadline_s + 10 for wish in client.wishes) + 120.0 for client in self.clients
        )

    def _surprised(self, loop: object, context: dict[str, Any]) -> None:
        del loop
        error = context.get("exception")
        if not isinstance(error, asyncio.CancelledError):
            self.surprises.append(f"{context.get('message')}: {error!r}")

    @contextlib.contextmanager
    def _instead(self) -> Iterator[None]:
        """The world's network in the place of gRPC's, and the same randomness each time."""
        source = random.Random(self.rng.getrandbits(64))
        random.seed(self.seed)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "urandom", source.randbytes)
            patch.setattr(random, "_urandom", source.randbytes)
            patch.setattr("novamesh.transport.open_channel", self.world.dial)
            patch.setattr("novamesh_node.link.open_channel", self.world.dial)
            yield

    @contextlib.contextmanager
    def _quiet(self) -> Iterator[None]:
        """No log is printed; a bug that production code caught at a boundary is one here."""
        with structlog.testing.capture_logs() as logs:
            yield
        self.surprises += [str(log) for log in logs if log["event"] in BUGS]


def _end(loop: VirtualLoop) -> None:
    """Let go of every task that is left, and of those they make while they end."""
    loop.set_exception_handler(lambda *_: None)
    for _ in range(8):
        left = sorted(asyncio.all_tasks(loop), key=hash)
        for task in left:
            task.cancel()
        with contextlib.suppress(Exception):
            loop.run_until_complete(asyncio.wait(left, timeout=5) if left else asyncio.sleep(0))
    loop.close()
