"""What everybody in the simulated world stands on, and how a life begins and ends.

Each party keeps its disk when it is killed, and nothing else.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from novamesh.config import Pool
from novamesh.transport import Channel as PinnedChannel
from novamesh_broker.entrance import Entrance
from novamesh_proto.broker import read_broker
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.identity import format_node_id
from support.clock import START_MS
from support.parties import COORDINATOR, NETWORK, party
from support.sim.network import Network
from support.sim.process import Process
from support.sim.rpc import Channel, Hosts

ADDRESS = "pool.sim:7700"
POOL = Pool(ADDRESS, format_node_id(COORDINATOR.node_id), NETWORK, "")


def fail(problem: str) -> None:
    """Where nobody judges afterwards, a finding ends it at once."""
    raise AssertionError(problem)


@dataclass
class World:
    """What parties stand on; `find` takes a sentence for something that must never happen."""

    loop: asyncio.AbstractEventLoop
    network: Network
    hosts: Hosts
    rng: random.Random
    note: Callable[[str], None]
    folder: Path
    pool: Pool = POOL
    epoch_ms: int = START_MS
    find: Callable[[str], None] = fail
    broker: str = ""  # its address, where there is one

    def process(self, name: str) -> Process:
        """A new life of a party."""
        return Process(name, self.loop, self.epoch_ms)

    async def live(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Do something; that production code breaks down under it is a finding."""
        try:
            await work
        except Exception as error:
            # The boundary of a party: what ends it must not end the world before it is judged.
            self.find(f"{name} broke down: {error!r}")

    def entrance(self) -> Entrance:
        """How the broker is entered."""
        broker = read_broker(self.broker)
        assert broker is not None, "this world has none"
        return Entrance(broker, None, None)

    async def dial(self, address: str, coordinator: object, deadline_s: float) -> PinnedChannel:
        """`open_channel` of this world; of TLS only who answers is simulated."""
        await asyncio.sleep(self.network.delay())
        if address in self.hosts.deserted:
            await asyncio.sleep(deadline_s)
            raise NovaMeshError(Code.UNAVAILABLE, "nobody answers there")
        server = self.hosts.servers.get(address)
        if server is None:
            raise NovaMeshError(Code.UNAVAILABLE, "nobody listens there")
        name = server.process.name
        if coordinator != (COORDINATOR if name == "pool" else party(name)).node_id:
            raise NovaMeshError(Code.PIN_MISMATCH, f"{name} answers there")
        return PinnedChannel(Channel(self.hosts, address), bytes(32))  # type: ignore[arg-type]  # not a real one


class Party:
    """Somebody with a machine: it lives in one process after another."""

    name: str
    honest = True

    def __init__(self, world: World) -> None:
        self._world = world
        self.process: Process | None = None

    async def start(self) -> None:
        """Begin a new life on what is on the disk."""
        self.process = self._world.process(self.name)
        self.process.spawn(self._world.live(self.name, self._run(self.process)), "run")

    async def kill(self) -> None:
        """SIGKILL."""
        if self.process is not None:
            self._world.note(f"{self.name} killed")
            process, self.process = self.process, None
            process.alive = False
            self._world.network.silence(self.name)
            await process.kill()

    async def _run(self, process: Process) -> None:
        raise NotImplementedError
