"""The world in one object: a pool, its nodes and clients, and everything that goes wrong with them.

One seed decides all of it: who lies, what breaks when, what gets lost. The same seed gives the same
run, event for event; `trace` is what happened, `findings` what must never happen.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import random
import sys
from collections.abc import Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any, Final

import pytest
import structlog

from novamesh_node.session import Stream
from novamesh_proto import wire
from novamesh_proto.messages import NodeDescriptor
from support.sim import broker
from support.sim.broker import Broker
from support.sim.client import Client, Wish
from support.sim.direct import DirectClient
from support.sim.direct_faults import DirectFaults
from support.sim.faults import SLOWEST_WRITE_S, Faults
from support.sim.liars import LIES, Liar
from support.sim.loop import HERE, START_S, VirtualLoop
from support.sim.lying_clients import LYING_CLIENTS
from support.sim.network import Network
from support.sim.node import Node, Pace
from support.sim.pool import Coordinator
from support.sim.rpc import Hosts
from support.sim.world import World

STORM_S: Final = 60.0  # in which things break, at most
HEALING_S: Final = 15.0
"""After the last deadline: by then every job must have ended."""
TOLD_S: Final = 45.0
"""Within which nodes are back, are found, and have told of what they donated."""
LISTENING_SHARE: Final = 0.7  # of nodes, where paths are direct
REACHING_SHARE: Final = 0.8  # of honest clients; others get everything relayed
KNOWN_SHARE: Final = 0.8  # of the nodes that listen, by a client's own list
ALONE_SHARE: Final = 0.7  # of those who reach nodes: they do without a pool that is away
MESH_SHARE: Final = 0.2  # of wishes, asked of nodes themselves from the start
CALM_SHARE: Final = 0.1  # worlds in which nothing breaks and nobody lies
LYING_SHARE: Final = 0.35  # of nodes
LYING_CLIENT_SHARE: Final = 0.25
SNAPSHOTS: Final = (3, 20, 100, 10_000)  # events between two of them
BUGS: Final = frozenset(
    {"attempt failed", "a message was dropped", "the engine failed", "a call failed",
     "a stream failed", "a tick failed", "presence failed"}
)  # fmt: skip


class Swarm:
    """One run."""

    def __init__(self, seed: int, folder: Path, direct: bool = False) -> None:
        """`direct`: nodes listen, and clients reach some of them themselves."""
        self.seed = seed
        self.direct = direct
        self.rng = rng = random.Random(seed)
        self.loop = VirtualLoop()
        self.trace: list[str] = []
        self.findings: list[str] = []
        self.healed_ms = 0
        self.met: set[str] = set()  # nodes that are with the pool at the end
        network = Network(self.loop, random.Random(rng.getrandbits(64)), self.note)
        hosts = Hosts(network)
        self.world = World(
            self.loop, network, hosts, rng, self.note, folder, find=self.findings.append
        )
        self.coordinator = Coordinator(self.world, self.is_honest)
        self.snapshot_every = rng.choice(SNAPSHOTS)
        self.calm = rng.random() < CALM_SHARE
        self.nodes = [self._node(number) for number in range(rng.randint(1, 4))]
        if direct:
            for node in self.nodes:
                node.listens = rng.random() < LISTENING_SHARE
        self.clients = [self._client(number) for number in range(rng.randint(1, 3))]
        if self.calm:
            # A slot for everybody, beside the one that an impatient client has just left.
            self.nodes[0].slots = 2 * len(self.clients)
        parties = (self.world, self.coordinator, self.nodes, self.clients)
        self.faults = Faults(rng, *parties)
        self.broker: Broker | None = None
        if direct:
            self.world.broker, self.broker = broker.ADDRESS, Broker(self.world)
            self.faults = faults = DirectFaults(rng, *parties)
            faults.broker = self.broker
        self.quiet = self.calm  # nothing breaks, whoever lies
        self.nodes_spared = self.calm  # nothing breaks but the pool and the broker

    @property
    def digest(self) -> str:
        """What two runs are compared by."""
        return hashlib.sha256("\n".join(self.trace).encode()).hexdigest()

    @property
    def honest(self) -> bool:
        """Whether every node is."""
        return all(node.honest for node in self.nodes)

    def is_honest(self, name: str) -> bool:
        """Whether that node or client is."""
        return any(party.honest for party in (*self.nodes, *self.clients) if party.name == name)

    def note(self, text: str) -> None:
        """Write down what happened."""
        self.trace.append(f"{self.loop.now_s - START_S:9.3f}  {text}")

    def run(self) -> None:
        """All of it."""
        self.loop.set_exception_handler(self._surprised)
        with self._instead(), self._listen():
            try:
                self.loop.run_until_complete(self._live())
            finally:
                _end(self.loop)

    async def _live(self) -> None:
        if self.broker is not None:
            await self.broker.start()
        await self.coordinator.start()
        for node in self.nodes:
            await node.start()
        await asyncio.sleep(self.rng.uniform(0, 1))
        for client in self.clients:
            await client.start()
        began_s = self.loop.time()
        await self.strike(began_s)
        await self._until(self._is_over, began_s + STORM_S)
        await self._heal()
        await self._finish()

    async def strike(self, began_s: float) -> None:
        """Everything that goes wrong, each thing at its moment."""
        faults = [] if self.calm else self.faults.draw(STORM_S * 0.7)
        self.quiet = not faults
        self.nodes_spared = all(fault.spares_nodes for fault in faults)
        for fault in faults:
            await asyncio.sleep(max(0.0, began_s + fault.at_s - self.loop.time()))
            self.note(f"fault: {fault.name}")
            await fault.strike()

    def _node(self, number: int) -> Node:
        rng = self.rng
        pace = Pace(rng.choice((0.02, 0.3, 2.0, 20.0)), rng.choice((0.004, 0.02, 0.2, 0.8)))
        node = Node(self.world, number, rng.randint(1, 3), pace)
        if not self.calm and rng.random() < LYING_SHARE:
            name = rng.choice(sorted(LIES))
            self.note(f"{node.name} lies: {name}")
            node.honest = False
            secret = random.Random(rng.getrandbits(64))

            def tamper(stream: Stream) -> Stream:
                return Liar(stream, node.key, LIES[name], secret)

            node.tamper = tamper
        return node

    def _client(self, number: int) -> Client:
        rng = self.rng
        lies = not self.calm and rng.random() < LYING_CLIENT_SHARE
        kind = rng.choice(LYING_CLIENTS) if lies else Client
        client = kind(self.world, number)
        if self.direct and not lies and rng.random() < REACHING_SHARE:
            known = [node for node in self.nodes if node.listens and rng.random() < KNOWN_SHARE]
            addresses = tuple((node.key.node_id, (node.address,)) for node in known)
            client = DirectClient(self.world, number, addresses, rng.random() < ALONE_SHARE)
        if lies:
            self.note(f"{client.name} is a {kind.__name__}")
        for _ in range(rng.randint(1, 4)):
            stop = rng.randint(1, 3) if rng.random() < 0.15 else None
            tokens, deadline_s = rng.randint(1, 40), rng.choice((5.0, 20.0, 45.0))
            mesh = isinstance(client, DirectClient) and rng.random() < MESH_SHARE
            client.wishes.append(Wish(tokens, deadline_s, stop, tries=3, mesh=mesh))
        return client

    async def _heal(self) -> None:
        """Everything works again, and everybody is back."""
        self.note("healing")
        self.world.network.clear()
        self.coordinator.disk.trap = None
        self.faults.mend_disk()
        if self.faults.returning:
            await asyncio.wait(self.faults.returning)
        brokers = () if self.broker is None else (self.broker,)
        for party in (self.coordinator, *brokers, *self.nodes, *self.clients):
            if party.process is not None:
                party.process.skew_ms = 0
                party.process.go_on()
            else:
                await party.start()
        assert self.coordinator.process is not None
        self.healed_ms = self.coordinator.process.now_ms()

    async def _finish(self) -> None:
        """Until everybody is done, within the last deadline and some seconds."""
        latest_s = self.loop.time() + self._longest_s() + HEALING_S
        await self._until(lambda: not any(client.busy for client in self.clients), latest_s)
        late = [client.name for client in self.clients if client.busy]
        if self.coordinator.door is not None:
            await self._until(self._is_over, latest_s)
        self.findings += [f"{name} is not done in time" for name in late]
        if self.direct:
            told_s = self.loop.time() + TOLD_S
            await self._until(self._is_told, told_s)
            self.met = {node.name for node in self.nodes if node.attached}
        await asyncio.sleep(SLOWEST_WRITE_S + 0.5)  # what is on its way to the disk gets there
        self.note(f"{len(self.coordinator.disk.rows)} events in the log")

    def _is_told(self) -> bool:
        """Whether every node is back, and has told what it had to."""
        for node in (node for node in self.nodes if node.honest and not node.errors):
            if not node.attached or node.donations.pending():
                return False
            for told in self.told_of(node).values():
                if told is None or (node.listens and node.address not in told):
                    return False
        return True

    def told_of(self, node: Node) -> dict[str, tuple[str, ...] | None]:
        """Where that node is by each way by which it is found; None: nowhere."""
        if (door := self.coordinator.door) is None:
            return {}
        advert = door.sequencer.core.registry._adverts.get(node.key.node_id)
        kept = door.table.get(node.key.node_id, door.clock.now_ms())
        said = (
            wire.decode(NodeDescriptor, advert.descriptor.payload) if advert is not None else None
        )
        by_pool = said.endpoints if said is not None else None
        by_broker = kept.message.endpoints if kept is not None else None
        return {"the pool": by_pool, "the broker": by_broker}

    def _is_over(self) -> bool:
        """Whether nobody wants or does anything any more."""
        door = self.coordinator.door
        idle = not any(client.busy for client in self.clients)
        return door is not None and idle and not door.sequencer.core.jobs.live_count()

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
            self.findings.append(f"unhandled: {context.get('message')}: {error!r}")

    @contextlib.contextmanager
    def _instead(self) -> Iterator[None]:
        """The world's network in the place of gRPC's, and the same randomness each time."""
        source = random.Random(self.rng.getrandbits(64))
        random.seed(self.seed)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "urandom", source.randbytes)
            patch.setattr(random, "_urandom", source.randbytes)
            patch.setattr("novamesh.transport.open_channel", self.world.dial)
            if self.broker is not None:
                for module in ("novamesh_broker.upkeep", "novamesh.retained"):
                    patch.setattr(f"{module}.connected", self.broker.connected)
            patch.setattr("novamesh_coordinator.snapshotter.SNAPSHOT_EVERY", self.snapshot_every)
            yield

    @contextlib.contextmanager
    def _listen(self) -> Iterator[None]:
        """No log is printed; a bug that production code caught at a boundary is a finding."""
        processors = structlog.get_config()["processors"]
        usual = processors.copy()
        processors[:] = [self._overhear]  # in place: loggers that were used before hold the list
        try:
            yield
        finally:
            processors[:] = usual

    def _overhear(self, logger: object, method: str, log: MutableMapping[str, Any]) -> Any:
        del logger, method
        if log["event"] in BUGS:
            process, error = HERE.get(), sys.exc_info()[1]
            name = process.name if process is not None else "somebody"
            self.findings.append(f"{name} failed inside: {log['event']}: {error!r}")
        raise structlog.DropEvent


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
