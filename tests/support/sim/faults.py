"""What goes wrong in a world, and when: each fault a name and what happens, all from one rng."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from novamesh_proto.messages import NodeId
from support.sim.client import Client
from support.sim.network import Weather
from support.sim.node import Node
from support.sim.pool import Coordinator
from support.sim.world import Party, World

HOUR_MS: Final = 3_600_000
SLOWEST_WRITE_S: Final = 2.0
USUAL_WRITE_S: Final = (0.0005, 0.008)
WRITTEN: Final = (
    "AttemptAccepted", "AttemptEnded", "AttemptSettled", "JobAdmitted", "JobEnded",
    "part", "snapshot", "part dropped",
)  # fmt: skip

_NOT_OF_NODES: Final = ("kill pool", "stop pool", "disk ", "kill broker", "broker ")
AWAY_S: Final = (0.05, 1.0, 8.0, 25.0)

Restartable = Coordinator | Party
Strike = Callable[[], Awaitable[None]]
Named = tuple[str, Strike]
Kind = Callable[[], Named]


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong at a moment."""

    at_s: float
    name: str
    strike: Strike

    @property
    def spares_nodes(self) -> bool:
        """Whether only the pool or the broker suffers, and no node or line of one."""
        return self.name.startswith(_NOT_OF_NODES) and " and " not in self.name


@dataclass
class Faults:
    """Makes faults for the parties of a world; `returning` are those on their way back."""

    rng: random.Random
    world: World
    pool: Coordinator
    nodes: Sequence[Node]
    clients: Sequence[Client]
    returning: list[asyncio.Task[None]] = field(default_factory=list)

    def draw(self, within_s: float) -> list[Fault]:
        """Some, none now and then, in the order of their moments."""
        kinds = self.kinds()
        drawn = [
            Fault(self.rng.uniform(0, within_s), *self.rng.choice(kinds)())
            for _ in range(self.rng.choice((0, 1, 2, 3, 5, 8)))
        ]
        return sorted(drawn, key=lambda fault: fault.at_s)

    def kinds(self) -> tuple[Kind, ...]:
        """What may be drawn, some of it more often."""
        return (
            self._weather, self._kill_pool, self._kill_writing_pool, self._kill_writing_pool,
            self._stop_pool, self._kill_node, self._kill_client, self._cut, self._disk,
            self._clock, self._flicker, self._outage, self._outage,
        )  # fmt: skip

    def mend_disk(self) -> None:
        """It takes writes, at its usual pace."""
        self.pool.disk.full, self.pool.disk.write_s = False, USUAL_WRITE_S

    def _weather(self) -> Named:
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

    def _kill_pool(self) -> Named:
        return "kill pool", self._restart(self.pool)

    def _stop_pool(self) -> Named:
        return "stop pool", self._restart(self.pool, gently=True)

    def _kill_writing_pool(self) -> Named:
        """While an event is written, slowly enough that whoever acts too early is seen."""
        kind, disk, kill = self.rng.choice(WRITTEN), self.pool.disk, self._kill_pool()[1]

        def spring() -> None:
            usual, disk.write_s = disk.write_s, (0.3, 0.3)

            async def later() -> None:
                await asyncio.sleep(0.2)
                disk.write_s = usual
                self.world.note(f"writing {kind}")
                await kill()

            self.returning.append(self.world.loop.create_task(later()))

        async def strike() -> None:
            disk.trap = kind, spring

        return f"kill pool as it writes {kind}", strike

    def _kill_node(self) -> Named:
        node = self.rng.choice(self.nodes)
        return f"kill {node.name}", self._restart(node)

    def _kill_client(self) -> Named:
        client = self.rng.choice(self.clients)
        return f"kill {client.name}", self._restart(client)

    def _outage(self) -> Named:
        """A coordinator and a node in one house without power, in the middle of an answer."""
        down = {node.key.node_id: self._restart(node, (0.05, 1.0)) for node in self.nodes}
        kill_pool = self._restart(self.pool, (0.05, 1.0))

        async def strike() -> None:
            self.returning.append(self.world.loop.create_task(later()))

        async def later() -> None:
            for _ in range(200):
                if node := self._answering():
                    await kill_pool()
                    await down[node]()
                    return
                await asyncio.sleep(0.05)

        return "kill pool and the node that answers", strike

    def _answering(self) -> NodeId | None:
        """A node of whose answer the relay holds a part."""
        if self.pool.door is None:
            return None
        core = self.pool.door.sequencer.core
        for job in core.jobs.live():
            stream = core.relay.get(job.job)
            if job.at_work and stream is not None and stream.chain.chunks:
                return job.node
        return None

    def _cut(self) -> Named:
        """Between the pool and somebody, one way or both."""
        return self._cut_between(self.rng.choice([*self.nodes, *self.clients]).name, "pool")

    def _cut_between(self, *ends: str) -> Named:
        pairs = [ends, ends[::-1]]
        cut = pairs if self.rng.random() < 0.5 else [self.rng.choice(pairs)]
        seconds = self.rng.choice((0.5, 5.0, 20.0, 50.0))

        async def strike() -> None:
            for source, target in cut:
                self.world.network.cut(source, target, seconds)

        return f"cut {cut}", strike

    def _flicker(self) -> Named:
        """A line that drops every connection a few times, a moment apart."""
        party = self.rng.choice([*self.nodes, *self.clients]).name
        moments = [self.rng.uniform(0, 8) for _ in range(self.rng.randint(2, 12))]

        async def strike() -> None:
            for moment in moments:
                self.world.loop.call_later(moment, self.world.network.drop, party)

        return f"line of {party} flickers", strike

    def _disk(self) -> Named:
        disk, full = self.pool.disk, self.rng.random() < 0.5
        seconds = self.rng.choice((0.3, 3.0, 10.0))

        async def strike() -> None:
            disk.full = full
            disk.write_s = disk.write_s if full else (0.5, SLOWEST_WRITE_S)
            self.world.loop.call_later(seconds, self.mend_disk)

        return f"disk {'full' if full else 'slow'} for {seconds} s", strike

    def _clock(self) -> Named:
        party = self.rng.choice([*self.nodes, *self.clients])
        skew_ms = self.rng.choice((-2, 2)) * HOUR_MS

        async def strike() -> None:
            if party.process is not None:
                party.process.skew_ms = skew_ms

        return f"clock of {party.name} is {skew_ms // HOUR_MS} h off", strike

    def _restart(
        self, party: Restartable, away: Sequence[float] = AWAY_S, *, gently: bool = False
    ) -> Strike:
        away_s = self.rng.choice(away)

        async def come_back() -> None:
            await asyncio.sleep(away_s)
            if party.process is None:
                await party.start()

        async def strike() -> None:
            if gently and isinstance(party, Coordinator):
                await party.stop()
            else:
                await party.kill()
            self.returning.append(asyncio.create_task(come_back()))

        return strike
