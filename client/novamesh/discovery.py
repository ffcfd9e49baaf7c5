"""Finding nodes: every way by which descriptors come, merged into one table.

Rules: a way is believed for nothing; what it brings is verified, and the table keeps the newest of
every node. A way that is closed is tried again with growing pauses and stops no other one. Where
nodes listen is remembered for the next start. Ranking the table is `matching`'s business.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from typing import Final, Protocol

from novamesh.clock import Clock
from novamesh.config import Pool
from novamesh.known_nodes import KnownNodes
from novamesh.paths import direct_endpoints
from novamesh.pool import PoolConnection
from novamesh_proto import wire
from novamesh_proto.envelope import Verified
from novamesh_proto.errors import NovaMeshError
from novamesh_proto.identity import PrivateKey, format_node_id
from novamesh_proto.limits import DESCRIPTOR_BYTES_MAX
from novamesh_proto.messages import Envelope, NodeDescriptor, NodeId, ProfileDigest
from novamesh_proto.node_table import NodeTable, Source

ASK_EVERY_S: Final = 20.0  # descriptors live for two minutes
SAVE_EVERY_S: Final = 30.0
SILENT_S_MAX: Final = 640.0
PAUSES_S: Final = (1.0, 2.0, 5.0, 10.0, 30.0)
STEADY_S: Final = 30.0  # a way that was open for so long is tried again soon
# Whoever passes these on has not looked whether the pool knows the node.
STRANGERS: Final = frozenset({Source.LIBP2P, Source.MQTT})
STATIC_HINT: Final = "novamesh config set client.nodes PEERID@HOST:PORT"
BROKER_HINT: Final = "novamesh config set client.mqtt mqtts://USER@HOST:PORT"
ASKED_AT_ONCE: Final = 8
ASK_S: Final = 2.0

Addresses = Callable[[], Sequence[tuple[NodeId, tuple[str, ...]]]]
Learn = Callable[[NodeId, NodeDescriptor], None]
Hints = Callable[[ProfileDigest], AsyncGenerator[Envelope]]
_log: Final = logging.getLogger(__name__)


class Discovery(Protocol):
    """One way by which descriptors come."""

    source: Source

    def descriptors(self) -> AsyncGenerator[Envelope]:
        """Descriptors as they come, unverified, repetitions included.

        Raises:
            NovaMeshError: the way is closed for now.
        """
        ...


class PoolList:
    """What the coordinator lists, asked again and again."""

    source = Source.COORDINATOR

    def __init__(self, pool: PoolConnection) -> None:
        self._pool = pool

    async def descriptors(self) -> AsyncGenerator[Envelope]:
        """As `Discovery.descriptors`."""
        while True:
            for sealed in await self._pool.list_descriptors():
                yield sealed
            await asyncio.sleep(ASK_EVERY_S)


class AskedNodes:
    """Nodes at addresses that we know: a static list, or those met before. Each is asked itself.

    Where nobody answers is asked more and more seldom. `key` signs the question, which every node
    answers: a fresh one tells no stranger who asks.
    """

    source = Source.STATIC

    def __init__(self, network: str, key: PrivateKey, clock: Clock, addresses: Addresses) -> None:
        self._network = network
        self._key = key
        self._clock = clock
        self._addresses = addresses
        self._silent: dict[tuple[NodeId, str], tuple[int, float]] = {}  # failures, asked again at

    async def descriptors(self) -> AsyncGenerator[Envelope]:
        """As `Discovery.descriptors`."""
        while True:
            known = self._worth_asking()
            for first in range(0, len(known), ASKED_AT_ONCE):
                some = known[first : first + ASKED_AT_ONCE]
                asked = [asyncio.create_task(self._ask(*one), name="ask a node") for one in some]
                try:
                    for answer in asyncio.as_completed(asked):
                        for sealed in await answer:
                            yield sealed
                finally:  # nobody is asked any more once the search has ended
                    for task in asked:
                        task.cancel()
                    await asyncio.gather(*asked, return_exceptions=True)
            await asyncio.sleep(ASK_EVERY_S)

    def _worth_asking(self) -> list[tuple[NodeId, str]]:
        """Addresses whose time has come; of those that are known no more nothing is remembered."""
        known = [(node, each) for node, some in self._addresses() for each in some]
        self._silent = {one: self._silent[one] for one in known if one in self._silent}
        now_s = self._clock.monotonic()
        return [one for one in known if self._silent.get(one, (0, 0.0))[1] <= now_s]

    async def _ask(self, node: NodeId, endpoint: str) -> tuple[Envelope, ...]:
        """What a node says of itself; nothing if it is not there."""
        pool = Pool(endpoint, format_node_id(node), self._network)
        connection = PoolConnection(pool, self._key, self._clock, ASK_S)
        failures, _ = self._silent.pop((node, endpoint), (0, 0.0))
        try:
            return await connection.list_descriptors()
        except NovaMeshError:
            wait_s = min(ASK_EVERY_S * 2 ** min(failures, 8), SILENT_S_MAX)
            self._silent[node, endpoint] = failures + 1, self._clock.monotonic() + wait_s
            return ()
        finally:
            await connection.close()


class Gossiped:
    """What peers pass on in the mesh."""

    source = Source.LIBP2P

    def __init__(self, heard: Callable[[], AsyncIterator[bytes]]) -> None:
        self._heard = heard

    async def descriptors(self) -> AsyncGenerator[Envelope]:
        """As `Discovery.descriptors`."""
        async for raw in self._heard():
            with contextlib.suppress(NovaMeshError):
                yield wire.decode(Envelope, raw, DESCRIPTOR_BYTES_MAX)


class Finder:
    """Owns the table; `run` feeds it until cancelled."""

    def __init__(
        self,
        network: str,
        clock: Clock,
        ways: Sequence[Discovery],
        known: KnownNodes,
        learn: Learn,
        hints: Hints | None = None,
    ) -> None:
        """`learn` is told of every node that was verified anew; `hints` looks for one model."""
        self.table = NodeTable(network, strangers=STRANGERS)
        self._clock = clock
        self._ways = tuple(ways)
        self._known = known
        self._learn = learn
        self._hints = hints
        self._news = asyncio.Condition()
        self._saved_s = -SAVE_EVERY_S

    async def run(self) -> None:
        """Follow every way until cancelled; what was learnt is saved on the way out."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for way in self._ways:
                    tasks.create_task(self._follow(way), name=f"find by {way.source}")
        finally:
            with contextlib.suppress(NovaMeshError):
                self._known.save()

    async def follow_hints(self, profile: ProfileDigest) -> None:
        """Ask those of whom it is said that they serve a model; they say it themselves, signed."""
        if self._hints is None:
            return
        try:
            async with contextlib.aclosing(self._hints(profile)) as descriptors:
                async for sealed in descriptors:
                    await self._take(sealed, Source.LIBP2P)
        except NovaMeshError as error:
            _log.debug("no hints: %s", error.message)

    def remember(self, node: Verified[NodeDescriptor]) -> None:
        """A node was reached at its own address, so it is asked there after a restart, too."""
        self._known.learn(node.issuer, direct_endpoints(node.message))
        self._save_now_and_then()

    async def wait(self, found: Callable[[], bool], seconds: float) -> bool:
        """Until something is found in the table, for at most so long; whether it was."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds), self._news:
                await self._news.wait_for(found)
        return found()

    def _save_now_and_then(self) -> None:
        """A client that is killed keeps most of what it knew."""
        now_s = self._clock.monotonic()
        if now_s - self._saved_s >= SAVE_EVERY_S:
            self._saved_s = now_s
            with contextlib.suppress(NovaMeshError):  # a full disk heals
                self._known.save()

    async def _follow(self, way: Discovery) -> None:
        failures = 0
        while True:
            opened_s = self._clock.monotonic()
            try:
                async with contextlib.aclosing(way.descriptors()) as descriptors:
                    async for sealed in descriptors:
                        await self._take(sealed, way.source)
            except Exception as error:  # boundary of a way: a bug in one must stop no other
                if self._clock.monotonic() - opened_s >= STEADY_S:
                    failures = 0
                if not failures:  # told once, however often it is tried in vain
                    _tell_closed(way.source, error)
            pause_s = PAUSES_S[min(failures, len(PAUSES_S) - 1)]
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
            failures += 1

    async def _take(self, sealed: Envelope, source: Source) -> None:
        now_ms = self._clock.now_ms()
        try:
            if not self.table.take(sealed, source, now_ms):
                return
        except NovaMeshError:
            return  # counted by the table
        self.table.forget(now_ms)
        said = wire.decode(NodeDescriptor, sealed.payload)
        if source not in STRANGERS:  # they do not tell us whom to dial again and again
            self._known.learn(said.header.issuer, direct_endpoints(said))
            self._save_now_and_then()
        self._learn(said.header.issuer, said)
        async with self._news:
            self._news.notify_all()


def _tell_closed(source: Source, error: Exception) -> None:
    if isinstance(error, NovaMeshError):
        _log.info("no nodes by way of %s: %s", source.value, error.message)
    else:
        _log.error("no nodes by way of %s: %s", source.value, type(error).__name__, exc_info=error)
