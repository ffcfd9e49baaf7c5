"""Connections to nodes themselves: dialled when wanted, probed, kept, forgotten when they fail.

A node speaks to its clients as a pool of one, so a line is a pool's connection whose coordinator is
the node; its PeerId is the pin. Rules: LINES_MAX are kept, the one not used for longest goes, and
one to an address that its node has left; a round trip counts for MEASURED_S; where nobody answered
is not tried again for AWAY_S, unless there is no other way. A tunnel takes long to open, so it is
opened where there is no other way, or beside one: then whoever wants it need not wait for it, and
the next job finds it.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from functools import partial
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
PROBE_TUNNEL_S: Final = 5.0  # it leads through two more processes, and maybe a relay
MEASURED_S: Final = 60.0
TUNNEL_S: Final = 30.0  # the mesh's own start included
OPENING_MAX: Final = 4  # tunnels at the same time, beside other ways

# Opens a tunnel to a node found at some multiaddrs, and gives the address to dial instead.
Tunnel = Callable[[NodeId, tuple[str, ...]], AbstractAsyncContextManager[str]]


@dataclass(slots=True)
class DirectLine:
    """A connection to a node, the way it takes, and its round trip in seconds."""

    connection: PoolConnection
    path: JobPath
    rtt_s: float
    measured_s: float  # when, monotonic seconds
    sequence: int  # of the descriptor that told where the node is
    keep: AsyncExitStack  # what must be closed with it

    def doubt(self) -> None:
        """Measure the round trip again before it counts once more: it may be one slow call's."""
        self.measured_s = -math.inf


class DirectLines:
    """Owns the lines of one client."""

    def __init__(
        self,
        network: str,
        key: PrivateKey,
        clock: Clock,
        tunnel: Tunnel | None = None,
        ready: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`tunnel` is None where there is none; `ready` returns when one may be opened beside
        another way, and is None where that is not wanted."""
        self._network = network
        self._key = key
        self._clock = clock
        self._tunnel = tunnel
        self._ready = ready
        self._lines: OrderedDict[NodeId, DirectLine] = OrderedDict()
        self._away = _Away(clock)
        self._no_tunnel = _Away(clock)
        self._opening: dict[NodeId, asyncio.Task[None]] = {}
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
        dial = partial(self._dial, descriptor, tunnels=insist)
        return await self._open(descriptor, dial, self._away, insist)

    async def open_tunnel(self, descriptor: Verified[NodeDescriptor]) -> None:
        """Get a tunnel to a node ready beside another way; `open` gives it from then on.

        It goes on when whoever waits for it leaves, for TUNNEL_S at most.

        Raises:
            NovaMeshError: UNAVAILABLE if none leads there or none is wanted, BUSY if OPENING_MAX
                are being opened.
        """
        node = descriptor.issuer
        opening = self._opening.get(node)
        if opening is None:
            if self._ready is None or node in self._no_tunnel:
                raise _out_of_reach(node)
            if len(self._opening) >= OPENING_MAX:
                raise NovaMeshError(Code.BUSY, f"{OPENING_MAX} tunnels are being opened")
            opening = self._opening[node] = asyncio.create_task(
                self._open_beside(descriptor, self._ready), name="tunnel"
            )
            opening.add_done_callback(lambda task: self._opened(node, task))
        await asyncio.shield(opening)

    async def drop(self, node: NodeId, line: DirectLine) -> None:
        """A line failed: the next one is dialled anew, unless somebody did that already."""
        if self._lines.get(node) is line:
            del self._lines[node]
            await line.keep.aclose()

    async def close(self) -> None:
        """Hang up."""
        opening = tuple(self._opening.values())
        for task in opening:
            task.cancel()
        await asyncio.gather(*opening, return_exceptions=True)
        while self._lines:
            _, line = self._lines.popitem()
            await line.keep.aclose()

    async def _open(
        self,
        descriptor: Verified[NodeDescriptor],
        dial: Callable[[], Awaitable[DirectLine]],
        away: _Away,
        insist: bool,
    ) -> DirectLine:
        """The line that is kept, or one that is dialled now; who does not answer is `away`."""
        node = descriptor.issuer
        dialing = self._dialing.setdefault(node, asyncio.Lock())
        async with dialing:
            line = await self._kept(node, descriptor.message)
            if line is not None:
                return line
            if not insist and node in away:
                raise _out_of_reach(node)
            try:
                line = await dial()
            except NovaMeshError:
                away.add(node)
                raise
            self._lines[node] = line
            self._away.remove(node)
            self._no_tunnel.remove(node)
        while len(self._lines) > LINES_MAX:
            _, oldest = self._lines.popitem(last=False)
            await oldest.keep.aclose()
        return line

    async def _kept(self, node: NodeId, said: NodeDescriptor) -> DirectLine | None:
        """The line to a node, unless it moved, with a round trip that is not too old."""
        line = self._lines.get(node)
        if line is None:
            return None
        if _moved(line, said):  # it may not be heard of for long that nobody is there any more
            await self.drop(node, line)
            return None
        self._lines.move_to_end(node)
        began_s = self._clock.monotonic()
        if began_s - line.measured_s > MEASURED_S:
            try:
                await line.connection.hello()
            except NovaMeshError:
                await self.drop(node, line)
                return None
            line.measured_s = self._clock.monotonic()
            line.rtt_s = line.measured_s - began_s
        return line

    async def _open_beside(
        self, descriptor: Verified[NodeDescriptor], ready: Callable[[], Awaitable[None]]
    ) -> None:
        node = descriptor.issuer
        try:
            async with asyncio.timeout(TUNNEL_S):
                await ready()
                dial = partial(self._dial_tunnel, descriptor)
                await self._open(descriptor, dial, self._no_tunnel, insist=False)
        except TimeoutError:
            self._no_tunnel.add(node)
            raise NovaMeshError(
                Code.UNAVAILABLE, f"no tunnel to {short(node)} within {TUNNEL_S:g} s"
            ) from None

    def _opened(self, node: NodeId, task: asyncio.Task[None]) -> None:
        del self._opening[node]
        if not task.cancelled():
            task.exception()  # told to whoever waited; where nobody did, it is no news for the log

    async def _dial(self, descriptor: Verified[NodeDescriptor], *, tunnels: bool) -> DirectLine:
        node = descriptor.issuer
        refusal = NovaMeshError(
            Code.UNAVAILABLE, f"{short(node)} says nowhere that it can be reached"
        )
        for endpoint in direct_endpoints(descriptor.message):
            try:
                return await self._probe(descriptor, endpoint, JobPath.DIRECT, AsyncExitStack())
            except NovaMeshError as error:
                refusal = error
        if tunnels and self._tunnel is not None and tunnel_addresses(descriptor.message):
            return await self._dial_tunnel(descriptor)
        raise refusal

    async def _dial_tunnel(self, descriptor: Verified[NodeDescriptor]) -> DirectLine:
        node, addresses = descriptor.issuer, tunnel_addresses(descriptor.message)
        if self._tunnel is None or not addresses:
            raise _out_of_reach(node)
        async with AsyncExitStack() as keep:
            endpoint = await keep.enter_async_context(self._tunnel(node, addresses))
            return await self._probe(descriptor, endpoint, JobPath.TUNNEL, keep.pop_all())

    async def _probe(
        self,
        descriptor: Verified[NodeDescriptor],
        endpoint: str,
        path: JobPath,
        keep: AsyncExitStack,
    ) -> DirectLine:
        """Dial, prove who answers, and measure the round trip."""
        pool = Pool(endpoint, format_node_id(descriptor.issuer), self._network)
        probe_s = PROBE_TUNNEL_S if path is JobPath.TUNNEL else PROBE_S
        connection = PoolConnection(pool, self._key, self._clock, probe_s, path)
        keep.push_async_callback(connection.close)
        try:
            await connection.hello()
            began_s = self._clock.monotonic()
            await connection.hello()
        except BaseException:  # a cancellation too leaves nothing open
            with contextlib.suppress(NovaMeshError):
                await keep.aclose()
            raise
        now_s = self._clock.monotonic()
        sequence = descriptor.message.sequence
        return DirectLine(connection, path, now_s - began_s, now_s, sequence, keep)


def _moved(line: DirectLine, said: NodeDescriptor) -> bool:
    """Whether a newer descriptor no longer names the address that a line leads to."""
    newer = line.path is JobPath.DIRECT and said.sequence > line.sequence
    return newer and line.connection.pool.address not in direct_endpoints(said)


def _out_of_reach(node: NodeId) -> NovaMeshError:
    return NovaMeshError(Code.UNAVAILABLE, f"{short(node)} was out of reach just now")


class _Away:
    """Nodes that did not answer lately; AWAY_MAX, the oldest are forgotten first."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._until_s: OrderedDict[NodeId, float] = OrderedDict()

    def __contains__(self, node: NodeId) -> bool:
        return self._until_s.get(node, 0.0) > self._clock.monotonic()

    def __len__(self) -> int:
        return len(self._until_s)

    def add(self, node: NodeId) -> None:
        self._until_s[node] = self._clock.monotonic() + AWAY_S
        self._until_s.move_to_end(node)
        while len(self._until_s) > AWAY_MAX:
            self._until_s.popitem(last=False)

    def remove(self, node: NodeId) -> None:
        self._until_s.pop(node, None)
