"""Hints by Kademlia: who says that it serves a model.

Rules: a record is a hint and nothing else, believed once a signed descriptor says the same; a model
is a key made of the pool and the profile, so pools do not meet; we say few keys, one a second, for
others drop what comes faster; a search always asks the network, never only what lies here.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import random
import time
from collections.abc import AsyncIterator
from typing import Final

import trio
from libp2p.abc import IHost
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.peer.id import ID
from libp2p.tools.anyio_service import background_trio_service

from novamesh.mesh.host import node_of
from novamesh_proto.messages import NodeId
from novamesh_proto.names import LABEL_PROVIDER

KEYS_MAX: Final = 8  # models of one node that are said; a neighbour takes ten in ten seconds
PACE_S: Final = 1.0
RENEW_S: Final = 300.0
FOUND_MAX: Final = 32
SEARCH_S: Final = 10.0  # for a whole search
ASK_S: Final = 4.0  # for one peer of it
RECORDS_MAX: Final = 4096  # keys that are kept for others
_ASKED_AT_ONCE: Final = 8

_log = logging.getLogger(__name__)


class Hints:
    """One host's part in the DHT; `serve` is false for those who only search."""

    def __init__(self, host: IHost, network: str, *, serve: bool) -> None:
        self._host = host
        self._network = network
        self._dht = KadDHT(
            host, DHTMode.SERVER if serve else DHTMode.CLIENT, strict_validation=True
        )
        self._store = self._dht.provider_store
        self._due_s: dict[bytes, float] = {}  # our keys, and when each is said again

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Take part until the block is left."""
        async with background_trio_service(self._dht), trio.open_nursery() as nursery:
            nursery.start_soon(self._say)
            yield
            nursery.cancel_scope.cancel()

    def provide(self, profiles: tuple[bytes, ...]) -> None:
        """These are the models that we serve now; of very many, the first."""
        keys = [provider_key(self._network, profile) for profile in profiles[:KEYS_MAX]]
        self._due_s = {key: self._due_s.get(key, 0.0) for key in keys}
        self._store.providing_keys.intersection_update(keys)

    async def find(self, profile: bytes) -> tuple[NodeId, ...]:
        """Who says it serves a model, in no order; us never."""
        key = provider_key(self._network, profile)
        found: dict[NodeId, None] = {}
        with trio.move_on_after(SEARCH_S):
            closest = await self._dht.peer_routing.find_closest_peers_network(key)
            slots = trio.CapacityLimiter(_ASKED_AT_ONCE)
            async with trio.open_nursery() as nursery:
                for peer in closest:
                    nursery.start_soon(self._ask, peer, key, found, slots)
        for provider in self._store.get_providers(key):
            self._note(provider.peer_id, found)
        return tuple(found)

    async def look_around(self, peers: list[ID]) -> None:
        """Fill the routing table: with those who are connected, and by asking for ourselves."""
        for peer in peers:
            await self._dht.add_peer(peer)
        with trio.move_on_after(SEARCH_S):
            await self._dht.peer_routing.find_closest_peers_network(self._host.get_id().to_bytes())

    def tidy(self) -> None:
        """Forget what is kept for others beyond the bound, at random; of values we keep none."""
        others = self._store.providers
        for key in random.sample(sorted(others), max(0, len(others) - RECORDS_MAX)):
            del others[key]
        self._dht.value_store.store.clear()
        if len(self._dht._provider_rate_limits) > RECORDS_MAX:
            self._dht._provider_rate_limits.clear()

    async def _ask(
        self, peer: ID, key: bytes, found: dict[NodeId, None], slots: trio.CapacityLimiter
    ) -> None:
        if peer == self._host.get_id():
            return
        async with slots:
            with trio.move_on_after(ASK_S):
                providers, _ = await self._store._get_providers_from_peer_with_closers(peer, key)
                for provider in providers:
                    self._note(provider.peer_id, found)

    def _note(self, peer: ID, found: dict[NodeId, None]) -> None:
        node = node_of(peer)
        if node is not None and peer != self._host.get_id() and len(found) < FOUND_MAX:
            found[node] = None

    async def _say(self) -> None:
        """Say each of our keys now and every few minutes, at most one a second."""
        while True:
            await trio.sleep(PACE_S)
            due = [key for key, at_s in self._due_s.items() if at_s <= trio.current_time()]
            if not due or not self._host.get_connected_peers():
                continue
            said = False
            with trio.move_on_after(SEARCH_S):
                said = await self._store.provide(due[0])
            self._store._last_republish[due[0]] = time.time()  # libp2p would say all at once
            if due[0] in self._due_s:
                pause_s = RENEW_S if said else 2 * PACE_S
                self._due_s[due[0]] = trio.current_time() + pause_s


def provider_key(network: str, profile: bytes) -> bytes:
    """The DHT key of a model in a pool."""
    return hashlib.sha256(LABEL_PROVIDER + network.encode() + b"\0" + profile).digest()
