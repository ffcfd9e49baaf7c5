"""The pool's coordinator: production core, sequencer, hub and services over a simulated disk."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from novamesh_coordinator.broker_wiring import presence_loops
from novamesh_coordinator.config import CoordinatorConfig
from novamesh_coordinator.core import PoolIdentity
from novamesh_coordinator.node_service import NodeService
from novamesh_coordinator.pool_service import PoolService
from novamesh_coordinator.sequencer import Clock
from novamesh_coordinator.server import GRACE_S, load_core, make_door
from novamesh_coordinator.service import Door
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.v1 import coordinator_pb2_grpc, node_pb2_grpc
from support.parties import COORDINATOR, NETWORK
from support.sim.disk import Disk, DiskStore
from support.sim.process import Process
from support.sim.rpc import Server
from support.sim.witness import Witness
from support.sim.world import ADDRESS, World

IDENTITY = PoolIdentity(COORDINATOR, NETWORK, open=True)


class Coordinator:
    """One coordinator in its lives; `door` is None while it does not serve."""

    name = "pool"

    def __init__(self, world: World, honest: Callable[[str], bool] = lambda name: True) -> None:
        self._world = world
        self.disk = Disk(world.rng, world.folder)
        self._witness = Witness(self.disk, honest, world.find)
        self.process: Process | None = None
        self.door: Door | None = None

    async def start(self) -> None:
        """Read the log and take calls."""
        self.process = process = self._world.process(self.name)
        await process.spawn(self._world.live(self.name, self._serve(process)), "start")

    async def stop(self) -> None:
        """SIGTERM: nodes are told, calls get time to end, a snapshot is written."""
        process, door = self.process, self.door
        if process is None or door is None:
            return
        self._world.note("pool stops")
        self._world.hosts.servers[ADDRESS] = None
        door.hub.say_goodbye(Code.UNAVAILABLE, "the coordinator stops")
        await asyncio.sleep(GRACE_S)
        if process.alive:
            await asyncio.wait([process.spawn(self._save(door), "save")])
        if self.process is process:
            await self.kill()

    async def kill(self) -> None:
        """SIGKILL."""
        if self.process is None:
            return
        self._world.note("pool killed")
        process, self.process, door, self.door = self.process, None, self.door, None
        self._world.hosts.servers[ADDRESS] = None
        process.alive = False
        self._world.network.silence(self.name)
        await process.kill()
        if door is not None:
            await door.store.close()

    async def _serve(self, process: Process) -> None:
        world = self._world
        config = CoordinatorConfig(network=NETWORK, http="", open=True, mqtt=world.broker)
        clock = Clock(process.now_ms, process.monotonic)
        await self._refuse_older(clock)
        store = DiskStore(self.disk)
        core = await load_core(IDENTITY, store, clock)
        door = make_door(core, store, config, clock, seed=world.rng.getrandbits(32))
        server = Server(process, self._witness)
        coordinator_pb2_grpc.add_PoolServiceServicer_to_server(PoolService(door), server)  # type: ignore[no-untyped-call]
        node_pb2_grpc.add_NodeServiceServicer_to_server(NodeService(door), server)  # type: ignore[no-untyped-call]
        for loop in (*door.sequencer.loops(), *presence_loops(door, config)):
            process.spawn(world.live(self.name, loop()), loop.__name__)
        self.door = door
        world.hosts.servers[ADDRESS] = server
        world.note(f"pool serves, {store.mark.seq} events")

    async def _refuse_older(self, clock: Clock) -> None:
        """First somebody puts back an older copy, or one that went another way since then."""
        rng, acknowledged = self._world.rng, self.disk.acknowledged
        if not acknowledged:
            return
        events = rng.randrange(acknowledged)
        forged = rng.choice((0, acknowledged - events))
        store = DiskStore(self.disk.older(events, forged))
        try:
            await load_core(IDENTITY, store, clock)
        except NovaMeshError as error:
            if error.code is not Code.CORRUPT or "was acknowledged" not in error.message:
                self._world.find(f"pool is refused an older disk, but not for that: {error!r}")
        else:
            self._world.find(f"pool starts on a disk with {events} of {acknowledged} events")
        finally:
            await store.close()

    async def _save(self, door: Door) -> None:
        with contextlib.suppress(NovaMeshError):
            await door.sequencer.save()
