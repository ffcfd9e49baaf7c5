"""A client's search for nodes: every way that is open to it, from the first question on.

Rules: it begins when somebody asks for it, soon after the client where the mesh is on, and ends
with the client; a way that is closed on this machine (mesh or broker without its extra) is left
out, and is an error only where no other is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import replace
from typing import Final

from novamesh.clock import Clock
from novamesh.config import Config, Pool
from novamesh.discovery import (
    ASK_S,
    BROKER_HINT,
    STATIC_HINT,
    AskedNodes,
    Discovery,
    Finder,
    Gossiped,
    PoolList,
)
from novamesh.known_nodes import KnownNodes
from novamesh.mesh.mesh import Mesh
from novamesh.mesh_settings import load_mesh_settings, mesh_config
from novamesh.paths import tunnel_addresses
from novamesh.pool import PoolConnection
from novamesh_broker.entrance import open_entrance
from novamesh_proto import wire
from novamesh_proto.broker import read_broker
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.identity import PrivateKey, format_node_id, parse_node_id
from novamesh_proto.limits import DESCRIPTOR_BYTES_MAX
from novamesh_proto.messages import Envelope, NodeDescriptor, NodeId, ProfileDigest
from novamesh_proto.node_table import open_descriptor

HINTED_MAX: Final = 4  # nodes that are asked for one model
WARM_UP_S: Final = 2.0  # a client that asks one short question is over by then

_log: Final = logging.getLogger(__name__)


class Search:
    """What a client knows of nodes by itself; `finder` owns the table."""

    def __init__(self, config: Config, pool: PoolConnection, clock: Clock) -> None:
        self._config = config
        self._pool = pool
        self._clock = clock
        self._stack = contextlib.AsyncExitStack()
        self._mesh: Mesh | None = None
        self._task: asyncio.Task[None] | None = None
        self._finder: Finder | None = None
        self._starting = asyncio.Lock()
        # Whoever only looks for nodes needs no name, and strangers need not learn the job's.
        self._nobody = PrivateKey.generate()
        self._warming: asyncio.Task[None] | None = None

    def warm_up(self) -> None:
        """Begin soon, so that whoever must do without the coordinator need not wait for it."""
        self._warming = asyncio.create_task(self._warm_up(), name="warm up the search")

    async def warmed_up(self) -> None:
        """When a search that was begun in advance is at work, or failed to begin."""
        if self._warming is not None:
            await asyncio.shield(self._warming)

    async def finder(self) -> Finder:
        """The finder, at work from the first call on.

        Raises:
            NovaMeshError: BAD_CONFIG for settings that make no sense; UNSUPPORTED where every way
                lacks what it needs, and the coordinator does not answer.
        """
        async with self._starting:
            if self._finder is None:
                self._finder = await self._start()
            return self._finder

    @contextlib.asynccontextmanager
    async def tunnel(self, node: NodeId, addresses: tuple[str, ...]) -> AsyncIterator[str]:
        """An address behind which that node answers; the search begins with the first one.

        `addresses` are where it said it is found; what it says now counts more. A mesh that is off
        is not started for it.

        Raises:
            NovaMeshError: UNAVAILABLE, UNSUPPORTED without the mesh.
        """
        if self._mesh is not None or load_mesh_settings(self._config.places).on:
            finder = await self.finder()
        if self._mesh is None:
            raise NovaMeshError(
                Code.UNSUPPORTED, "this machine is in no mesh", "novamesh config set mesh.on true"
            )
        newest = finder.table.get(node, self._clock.now_ms())
        if newest is not None:
            addresses = tunnel_addresses(newest.message) or addresses
        async with self._mesh.open_tunnel(node, addresses) as address:
            yield address

    async def close(self) -> None:
        """Look no more."""
        for task in filter(None, (self._warming, self._task)):
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await self._stack.aclose()

    async def _warm_up(self) -> None:
        await asyncio.sleep(WARM_UP_S)
        try:
            await self.finder()
        except NovaMeshError as error:
            _log.info("nodes are not looked for: %s", error.message)

    async def _start(self) -> Finder:
        pool, places = self._pool, self._config.places
        known = KnownNodes(places.data / "nodes.json")
        static = parse_nodes(self._config.client.nodes)
        ways: list[Discovery] = [
            AskedNodes(pool.network, self._nobody, self._clock, lambda: static),
            AskedNodes(pool.network, self._nobody, self._clock, known.addresses),
            PoolList(pool),
        ]
        more, lacking = await self._more_ways()
        if not (more or static or known.addresses()):
            await self._require_coordinator(lacking)
        for error in lacking:
            _log.info("a way to find nodes is left out: %s", error.message)
        ways += more
        finder = Finder(pool.network, self._clock, ways, known, self._learn, self._hints)
        self._task = asyncio.create_task(finder.run(), name="search")
        return finder

    async def _more_ways(self) -> tuple[list[Discovery], list[NovaMeshError]]:
        """Broker and mesh, as far as this machine has what they need; and what it lacks."""
        open_to: list[Discovery] = []
        lacking: list[NovaMeshError] = []
        for enter in (self._enter_broker, self._enter_mesh):
            try:
                open_to += await enter()
            except NovaMeshError as error:
                if error.code is not Code.UNSUPPORTED:
                    raise
                lacking.append(error)
        return open_to, lacking

    async def _require_coordinator(self, lacking: Sequence[NovaMeshError]) -> None:
        """Its list is the one way left."""
        try:
            await self._pool.list_descriptors()
        except NovaMeshError as error:
            reasons = [*(each.message for each in lacking), "no node and no broker is named"]
            ways_out = [*(each.hint for each in lacking), STATIC_HINT, BROKER_HINT]
            raise NovaMeshError(
                Code.UNSUPPORTED,
                f"nodes cannot be found: {'; '.join(reasons)}; the coordinator: {error.message}",
                f"any of these is a way:  {'   or   '.join(ways_out)}",
            ) from error

    async def _enter_broker(self) -> list[Discovery]:
        """Read what nodes leave at the broker, if one is named."""
        chosen = self._config.client
        broker = read_broker(chosen.mqtt, chosen.mqtt_password_file, chosen.mqtt_ca)
        if broker is None:
            return []
        try:
            from novamesh.retained import Retained
        except ImportError as error:
            raise NovaMeshError(
                Code.UNSUPPORTED, f"{broker} cannot be read: {error.name} is missing",
                "pip install 'novamesh[mqtt]'",
            ) from error  # fmt: skip
        return [Retained(open_entrance(broker), self._pool.network)]

    async def _enter_mesh(self) -> list[Discovery]:
        """Listen to the mesh, and reach nodes through it."""
        pool, places = self._pool, self._config.places
        chosen = load_mesh_settings(places)
        peers = places.data / "client-peers.json"
        config = replace(mesh_config(chosen, pool.network, self._nobody, peers), listen=())
        network, clock = pool.network, self._clock

        def check(raw: bytes) -> None:
            sealed = wire.decode(Envelope, raw, DESCRIPTOR_BYTES_MAX)
            open_descriptor(sealed, network, clock.now_ms())

        self._mesh = await self._stack.enter_async_context(Mesh(config, check))
        return [Gossiped(self._mesh.descriptors)]

    async def _hints(self, profile: ProfileDigest) -> AsyncGenerator[Envelope]:
        """Descriptors of those that the mesh names for a model, from themselves."""
        if self._mesh is None:
            return
        for node in (await self._mesh.find_providers(profile))[:HINTED_MAX]:
            with contextlib.suppress(NovaMeshError):
                async with self._mesh.open_tunnel(node) as address:
                    entry = Pool(address, format_node_id(node), self._pool.network)
                    asked = PoolConnection(entry, self._nobody, self._clock, ASK_S)
                    try:
                        for sealed in await asked.list_descriptors():
                            yield sealed
                    finally:
                        await asked.close()

    def _learn(self, node: NodeId, said: NodeDescriptor) -> None:
        addresses = tunnel_addresses(said)
        if self._mesh is not None and addresses:
            self._mesh.learn(node, addresses)


def parse_nodes(text: str) -> tuple[tuple[NodeId, tuple[str, ...]], ...]:
    """Nodes of a static list, PEERID@HOST:PORT with commas between.

    Raises:
        NovaMeshError: BAD_CONFIG naming the entry.
    """
    found = []
    for entry in filter(None, (part.strip() for part in text.split(","))):
        peer, _, endpoint = entry.partition("@")
        if not endpoint:
            raise NovaMeshError(
                Code.BAD_CONFIG, f"client.nodes: {entry!r} names no address", STATIC_HINT
            )
        try:
            found.append((parse_node_id(peer), (endpoint,)))
        except NovaMeshError as error:
            raise NovaMeshError(
                Code.BAD_CONFIG, f"client.nodes: {error.message}", STATIC_HINT
            ) from None
    return tuple(found)
