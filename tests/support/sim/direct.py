"""What direct paths add to a world: clients that reach nodes themselves, and do without the pool.

A node that listens is a host of its own; a client that reaches it dials it through production's
lines, follows its answer on two ways, and asks it alone where the pool is away. What such a client
knows of nodes is a static list, what the pool lists, and what is retained by the broker.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

from novamesh.clock import Clock
from novamesh.desk import Desk
from novamesh.direct_lines import DirectLines
from novamesh.discovery import AskedNodes, Finder, PoolList
from novamesh.job_transport import JobPool
from novamesh.known_nodes import KnownNodes
from novamesh.mesh_pool import MeshPool
from novamesh.pool import PoolConnection
from novamesh.retained import Retained
from novamesh_proto.messages import Envelope, NodeId
from support.parties import NETWORK
from support.sim.client import Client
from support.sim.world import World

Addresses = tuple[tuple[NodeId, tuple[str, ...]], ...]


class InTurn(AskedNodes):
    """Nodes are asked one after the other: asked at once, they would answer in any order."""

    async def descriptors(self) -> AsyncIterator[Envelope]:
        """As `Discovery.descriptors`."""
        while True:
            for node, endpoints in self._addresses():
                for endpoint in endpoints:
                    for sealed in await self._ask(node, endpoint):
                        yield sealed
            await asyncio.sleep(20.0)


class DirectClient(Client):
    """One that dials nodes; `alone` does without a pool that is away."""

    def __init__(self, world: World, number: int, addresses: Addresses, alone: bool) -> None:
        super().__init__(world, number)
        self._addresses = addresses
        self._alone = alone
        self._lines: DirectLines | None = None
        self._finding: asyncio.Task[None] | None = None

    def furnish(self, pool: PoolConnection, clock: Clock) -> Desk:
        """With lines of its own, and a table of nodes."""
        self._lines = lines = DirectLines(NETWORK, self.key, clock)
        way = InTurn(NETWORK, self.key, clock, lambda: self._addresses)
        known = KnownNodes(self._world.folder / self.name / "nodes.json")
        kept = Retained(self._world.entrance(), NETWORK)
        ways = [way, PoolList(pool), kept]
        finder = Finder(NETWORK, clock, ways, known, lambda node, said: None)

        async def find() -> None:
            await self._world.live(self.name, finder.run())

        self._finding = asyncio.get_running_loop().create_task(find(), name="find")

        async def mesh() -> JobPool:
            return MeshPool(finder, lines, NETWORK, self.key, clock)

        desk = super().furnish(pool, clock)
        return replace(desk, lines=lines, mesh=mesh, alone=self._alone)

    async def leave(self) -> None:
        """Hang up everywhere."""
        if self._finding is not None:
            self._finding.cancel()
            await asyncio.wait([self._finding])
        if self._lines is not None:
            await self._lines.close()
