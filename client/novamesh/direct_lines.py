"""Connections to nodes themselves: dialled when wanted, probed, kept, forgotten when they fail.

A node speaks to its clients as a pool of one, so a line is a pool's connection whose coordinator is
the node; its PeerId is the pin. Rules: LINES_MAX are kept, the one not used for longest goes; where
nobody answered is not tried again for AWAY_S, unless there is no other way.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from typing import Final
from weakref import WeakValueDictionary

from novamesh.clock import Clock
from novamesh.config import Pool
from novamesh.paths import direct_endpoints, tunnel_addresses
from novamesh.pool import PoolConnection
from novamesh_proto.envelope import Verified
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.identity import PrivateKey, format_node_id, short
from novamesh_proto.messages import JobPath, NodeDescriptor, NodeId

LINES_MAX: Final = 64
AWAY_S: Final = 30.0
AWAY_MAX: Final = 1024
PROBE_S: Final = 2.0

# Opens a tunnel to a node found at some multiaddrs, and gives the address to dial instead.
Tunnel = Callable[[NodeId, tuple[str, ...]], AbstractAsyncContextManager[str]]


@dataclass(slots=True)
class DirectLine:
    """A connection to a node, the way it takes, and its round trip in seconds."""

    connection: PoolConnection
    path: JobPath
    rtt_s: float
    keep: AsyncExitStack  # what must be closed with it


class DirectLines:
    """Owns the lines of one client; `tunnel` is None where there is none, or none yet."""

    def __init__(
        self, network: str, key: PrivateKey, clock: Clock, tunnel: Tunnel | None = None
    ) -> None:
        self._network = network
        self._key = key
        self._clock = clock
        self.tunnel = tunnel
        self._lines: OrderedDict[NodeId, DirectLine] = OrderedDict()
        self._away: OrderedDict[NodeId, float] = OrderedDict()  # until when, monotonic seconds
        # Held by whoever dials: two that dial the same node wait for each other.
        self._dialing: WeakValueDictionary[NodeId, asyncio.Lock] = WeakValueDictionary()

    async def open(
        self, descriptor: Verified[NodeDescriptor], *, insist: bool = False
    ) -> DirectLine:
        """A line to a node that answered.

        `insist` tries also where nobody answered lately, and tunnels, which take longer to open.

        Raises:
            NovaMeshError: UNAVAILABLE if it cannot be reached from here.
        """
        node = descriptor.issuer
        dialing = self._dialing.setdefault(node, asyncio.Lock())
        async with dialing:
            line = self._lines.get(node)
            if line is not None:
                self._lines.move_to_end(node)
                return line
            if not insist and self._away.get(node, 0.0) > self._clock.monotonic():
                raise NovaMeshError(Code.UNAVAILABLE, f"{short(node)} was out of reach just now")
            try:
                line = await self._dial(descriptor, tunnels=insist)
            except NovaMeshError:
                self._remember_away(node)
                raise
            self._lines[node] = line
            self._away.pop(node, None)
        while len(self._lines) > LINES_MAX:
            _, oldest = self._lines.popitem(last=False)
            await oldest.keep.aclose()
        return line

    async def drop(self, node: NodeId, line: DirectLine) -> None:
        """A line failed: the next one is dialled anew, unless somebody did that already."""
        if self._lines.get(node) is line:
            del self._lines[node]
            await line.keep.aclose()

    async def close(self) -> None:
        """Hang up."""
        while self._lines:
            _, line = self._lines.popitem()
            await line.keep.aclose()

    async def _dial(self, descriptor: Verified[NodeDescriptor], *, tunnels: bool) -> DirectLine:
        node, said = descriptor.issuer, descriptor.message
        refusal = NovaMeshError(
            Code.UNAVAILABLE, f"{short(node)} says nowhere that it can be reached"
        )
        for endpoint in direct_endpoints(said):
            try:
                return await self._probe(node, endpoint, JobPath.DIRECT, AsyncExitStack())
            except NovaMeshError as error:
                refusal = error
        addresses = tunnel_addresses(said)
        if tunnels and addresses and self.tunnel is not None:
            async with AsyncExitStack() as keep:
                endpoint = await keep.enter_async_context(self.tunnel(node, addresses))
                return await self._probe(node, endpoint, JobPath.TUNNEL, keep.pop_all())
        raise refusal

    async def _probe(
        self, node: NodeId, endpoint: str, path: JobPath, keep: AsyncExitStack
    ) -> DirectLine:
        """Dial, prove who answers, and measure the round trip."""
        pool = Pool(endpoint, format_node_id(node), self._network)
        connection = PoolConnection(pool, self._key, self._clock, PROBE_S, path)
        keep.push_async_callback(connection.close)
        try:
            await connection.hello()
            began_s = self._clock.monotonic()
            await connection.hello()
        except BaseException:  # a cancellation too leaves nothing open
            with contextlib.suppress(NovaMeshError):
                await keep.aclose()
            raise
        return DirectLine(connection, path, self._clock.monotonic() - began_s, keep)

    def _remember_away(self, node: NodeId) -> None:
        self._away[node] = self._clock.monotonic() + AWAY_S
        self._away.move_to_end(node)
        while len(self._away) > AWAY_MAX:
            self._away.popitem(last=False)
