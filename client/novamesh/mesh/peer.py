"""One libp2p peer of a pool: host, gossip, hints, tunnels and upkeep, from start to orderly stop.

Rules: everything here lives in the trio thread and ends with it; it starts hardened or not at all;
it keeps six connections as long as it knows so many peers, looks for more now and then, and drops
those that no longer answer. What outlives a crash (the peer list, what we say) is owned by whoever
makes it.
"""

from __future__ import annotations

import contextlib
import logging
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

import trio
from libp2p.abc import INetStream
from libp2p.host.ping import ID as PING
from libp2p.host.ping import perform_ping_roundtrip
from libp2p.peer.id import ID

from novamesh.mesh import hardening, lan, tunnel
from novamesh.mesh.config import MeshConfig
from novamesh.mesh.dht import Hints
from novamesh.mesh.gossip import Check, Gossip
from novamesh.mesh.host import (
    HostConfig,
    announced,
    dial,
    node_of,
    open_host,
    peer_in,
    peer_of,
    with_peer,
)
from novamesh.mesh.peers import PeerList
from novamesh.mesh.relay import Circuits
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.identity import short
from novamesh_proto.messages import NodeId

TARGET: Final = 6  # connections that are kept
WIDER: Final = 12  # up to so many, one more is tried now and then: it mends a split mesh
TUNNELS_MAX: Final = 64
ROUND_S: Final = 1.0
STOP_S: Final = 8.0  # for an orderly end of everything
_DIALS_A_ROUND: Final = 2  # a crowd that starts together dials each other only once
_LOST_ROUNDS: Final = 10
_LOOK_ROUNDS: Final = 60
_SAVE_ROUNDS: Final = 20
_RELAY_ROUNDS: Final = 5
_WIDEN_ROUNDS: Final = 60
_ASKED_A_ROUND: Final = 8
_ASK_EVERY_S: Final = 12.0  # home routers forget who is silent for 15 s
_ANSWER_S: Final = 15.0  # a busy machine is no dead one
_SILENCES_MAX: Final = 2

_log = logging.getLogger(__name__)


class Peer:
    """The trio side of a Mesh; `run` is the main of its bridge."""

    def __init__(
        self,
        config: MeshConfig,
        peers: PeerList,
        check: Check,
        deliver: Callable[[bytes], None],
        said: tuple[bytes, tuple[bytes, ...]] | None,
    ) -> None:
        self._config = config
        self._peers = peers
        self._check = check
        self._deliver = deliver
        self._said = said
        self._rng = random.Random()
        self._tunnels: dict[Path, trio.CancelScope] = {}
        self._asked_s: dict[ID, float] = {}  # when a connected peer was last asked for a sign
        self._silent: Counter[ID] = Counter()  # how often in a row it gave none
        self._looking = False
        self.addresses: tuple[str, ...] = ()  # read by other threads
        self.connections = 0

    async def run(self, *, task_status: trio.TaskStatus[Peer]) -> None:
        """Live until cancelled, then say goodbye: libp2p cancelled in its midst leaves sockets."""
        leave = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_tell_cancelled, leave)
            with trio.CancelScope(shield=True) as shelter:
                await self._live(leave, shelter, task_status)
            nursery.cancel_scope.cancel()

    async def _live(
        self, leave: trio.Event, shelter: trio.CancelScope, task_status: trio.TaskStatus[Peer]
    ) -> None:
        config = self._config
        self._learn_bootstrap()
        circuits = config.psk is None  # they do not go together
        async with open_host(
            HostConfig(config.key, config.listen, config.psk, 2 if circuits else 1)
        ) as host:
            self._host = host
            self._circuits = Circuits(host, relay=config.relay) if circuits else None
            self._gossip = Gossip(
                host, config.network, self._check, self._deliver, self._peers.__len__
            )
            self._hints = Hints(host, config.network, serve=bool(config.listen))
            hardening.assert_hardened(host, self._gossip.pubsub)
            if config.serve_socket is not None:
                tunnel.NodeEnd(host, config.serve_socket)
            self.addresses = announced(host)
            async with (
                self._circuits.running() if self._circuits else contextlib.nullcontext(),
                self._gossip.running(),
                self._hints.running(),
                trio.open_nursery() as nursery,
            ):
                self._nursery = nursery
                if self._said is not None:
                    self.say(*self._said)
                nursery.start_soon(self._maintain)
                if config.mdns:
                    nursery.start_soon(self._be_found)
                task_status.started(self)
                await leave.wait()
                shelter.deadline = trio.current_time() + STOP_S
                nursery.cancel_scope.cancel()

    def say(self, descriptor: bytes, profiles: tuple[bytes, ...]) -> None:
        """Publish our descriptor and the models it offers."""
        self._gossip.say(descriptor)
        self._hints.provide(profiles)

    async def find(self, profile: bytes) -> tuple[NodeId, ...]:
        """Who says it serves a model."""
        return await self._hints.find(profile)

    async def open_tunnel(self, node: NodeId, addresses: tuple[str, ...], socket: Path) -> None:
        """Lead connections to `socket` to a node, until `close_tunnel`.

        Raises:
            NovaMeshError: UNAVAILABLE if the node cannot be reached or takes no tunnels,
                BUSY if we have too many.
        """
        if len(self._tunnels) >= TUNNELS_MAX:
            raise NovaMeshError(Code.BUSY, f"{TUNNELS_MAX} tunnels are open already")

        async def open_stream() -> INetStream:
            where = addresses or self._peers.addresses(node)
            await dial(self._host, node, where, self._circuits)
            return await self._host.new_stream(peer_of(node), [tunnel.PROTOCOL])

        try:
            with trio.fail_after(tunnel.OPEN_S):
                await tunnel.end(await open_stream())
        except NovaMeshError:
            raise
        except Exception as error:  # the library has many ways to say no
            raise NovaMeshError(
                Code.UNAVAILABLE,
                f"{short(node)} takes no tunnel ({type(error).__name__})",
                "is it a node, and does it run with --mesh?",
            ) from error
        scope = self._tunnels[socket] = trio.CancelScope()

        async def serve(*, task_status: trio.TaskStatus[None]) -> None:
            with scope:
                await tunnel.serve_socket(socket, open_stream, task_status=task_status)

        await self._nursery.start(serve)

    async def close_tunnel(self, socket: Path) -> None:
        """End a tunnel and whatever goes through it; one that is gone stays so."""
        scope = self._tunnels.pop(socket, None)
        if scope is not None:
            scope.cancel()

    def _learn_bootstrap(self) -> None:
        """Our own bootstrap list, again and again: no crowd may push it out."""
        found: dict[NodeId, list[str]] = {}
        for text in self._config.bootstrap:
            node, address = peer_in(text)
            found.setdefault(node, []).append(address)
        for node, addresses in found.items():
            if not self._peers.addresses(node):
                self._peers.learn(node, addresses)

    async def _maintain(self) -> None:
        """Keep enough peers, find out who is gone, write down who is known."""
        rounds, config = 0, self._config
        while True:
            peers = self._host.get_connected_peers()
            nodes = {node for node in map(node_of, peers) if node is not None}
            for node in nodes:
                self._peers.connected(node)
            missing = TARGET - len(nodes)
            if rounds % _WIDEN_ROUNDS == _WIDEN_ROUNDS - 1 and len(nodes) < WIDER:
                missing = max(missing, 1)
            dialled = 0
            if missing > 0:
                dialled = await self._dial(min(missing, _DIALS_A_ROUND), nodes)
            lost = missing > 0 and not dialled  # we know nobody else: others may
            due = rounds % (_LOST_ROUNDS if lost else _LOOK_ROUNDS) == 2
            if due and peers and not self._looking:
                self._nursery.start_soon(self._look_around, peers)
            if rounds % _SAVE_ROUNDS == 2:
                self._learn_bootstrap()
                self._hints.tidy()
                await trio.to_thread.run_sync(self._peers.save)
            if self._circuits is not None and config.serve_socket and rounds % _RELAY_ROUNDS == 3:
                await self._circuits.reserve()
            self.addresses = self._reachable_at()
            self.connections = len(self._host.get_connected_peers())
            self._ask_around()
            await trio.sleep(ROUND_S * self._rng.uniform(0.8, 1.2))
            rounds += 1

    def _reachable_at(self) -> tuple[str, ...]:
        through = () if self._circuits is None else self._circuits.addresses()
        own = self._config.key.node_id
        return (*announced(self._host), *(with_peer(address, own) for address in through))

    async def _dial(self, number: int, connected: set[NodeId]) -> int:
        """Dial some of those we know; how many that were."""
        chosen = self._peers.choose(number, connected, self._rng)
        async with trio.open_nursery() as nursery:
            for node in chosen:
                nursery.start_soon(self._dial_one, node)
        return len(chosen)

    async def _dial_one(self, node: NodeId) -> None:
        try:
            await dial(self._host, node, self._peers.addresses(node))
            self._peers.connected(node)
        except NovaMeshError as error:
            _log.debug("%s", error.message)
            self._peers.failed(node)

    async def _look_around(self, peers: list[ID]) -> None:
        self._looking = True
        try:
            await self._hints.look_around(peers)
        except Exception as error:  # a search is a comfort: the next round tries again
            _log.debug("search failed: %s", type(error).__name__)
        finally:
            self._looking = False

    def _ask_around(self) -> None:
        """Ask a few peers a round for a sign of life; libp2p has no keepalive of its own."""
        now_s = trio.current_time()
        present = self._host.get_connected_peers()
        self._asked_s = {peer: self._asked_s.get(peer, now_s) for peer in present}
        self._silent = Counter({peer: n for peer, n in self._silent.items() if peer in present})
        due = [peer for peer in present if now_s - self._asked_s[peer] >= _ASK_EVERY_S]
        for peer in due[:_ASKED_A_ROUND]:
            self._asked_s[peer] = now_s
            self._nursery.start_soon(self._ask_one, peer)

    async def _ask_one(self, peer: ID) -> None:
        try:
            with trio.fail_after(_ANSWER_S):
                stream = await self._host.new_stream(peer, [PING])
                try:
                    await perform_ping_roundtrip(stream)
                finally:
                    await tunnel.end(stream)
            del self._silent[peer]
        except Exception as error:  # no answer, however it is told
            self._silent[peer] += 1
            _log.debug("%s is silent (%s)", peer, type(error).__name__)
            if self._silent[peer] >= _SILENCES_MAX:
                with trio.move_on_after(_ANSWER_S):
                    await hardening.disconnect(self._host, peer)

    async def _be_found(self) -> None:
        config = self._config
        async with lan.announced_on_lan(
            config.key.node_id, config.network, self.addresses, self._peers.hint
        ):
            await trio.sleep_forever()


async def _tell_cancelled(leave: trio.Event) -> None:
    try:
        await trio.sleep_forever()
    finally:
        leave.set()
