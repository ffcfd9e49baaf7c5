"""A pool's mesh, from asyncio: say who you are, hear who is there, reach a node.

Rules: libp2p lives in a thread of its own that is started again when it fails, so nothing said here
can break a job on another path: while the mesh is away, asking raises UNAVAILABLE and saying is
kept for its return. What is heard has passed `check`, and is believed no further than that.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, cast

from novamesh.mesh import installed
from novamesh.mesh.config import MeshConfig
from novamesh.mesh.inbox import Inbox
from novamesh.mesh.peers import PeerList
from novamesh_proto.errors import NovaMeshError
from novamesh_proto.messages import NodeId

if TYPE_CHECKING:
    from novamesh.mesh.bridge import Main
    from novamesh.mesh.peer import Peer
    from novamesh.mesh.supervisor import Supervisor

HEARD_MAX: Final = 1024  # descriptors that wait to be read


class Mesh:
    """`async with Mesh(config, check) as mesh`: take part until the block is left.

    Args:
        config: Who we are and where.
        check: Raises NovaMeshError for bytes that are no descriptor to believe; called for every
            message, in the mesh's thread, so it must be quick and touch nothing of asyncio.
    """

    def __init__(self, config: MeshConfig, check: Callable[[bytes], None]) -> None:
        self._config = config
        self._check = check
        self._said: tuple[bytes, tuple[bytes, ...]] | None = None

    async def __aenter__(self) -> Mesh:
        """Start.

        Raises:
            NovaMeshError: UNSUPPORTED without libp2p or with one that is not safe, BAD_CONFIG for
                addresses that cannot be used.
        """
        installed.require()
        supervisor, self._peer = await asyncio.to_thread(_load)
        self._inbox = Inbox(HEARD_MAX)
        self._peers = await asyncio.to_thread(
            PeerList, self._config.peers_file, self._config.key.node_id
        )
        self._supervisor: Supervisor[Peer] = supervisor(self._make)
        await self._supervisor.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._supervisor.__aexit__(kind, error, trace)
        self._inbox.close()
        await asyncio.to_thread(self._peers.save)

    def publish(self, descriptor: bytes, profiles: tuple[bytes, ...]) -> None:
        """Say this descriptor from now on, now and to everybody who comes; the newest wins.

        Args:
            descriptor: A wire-encoded Envelope.
            profiles: Digests of the model profiles it offers, for the hints.
        """
        self._said = (descriptor, profiles)
        with contextlib.suppress(NovaMeshError):  # it is starting again, and will say it then
            self._supervisor.send(self._peer.say, descriptor, profiles)

    def descriptors(self) -> AsyncIterator[bytes]:
        """What others say, as it comes, repetitions included; one reader."""
        return self._inbox.read()

    async def find_providers(self, profile: bytes) -> tuple[NodeId, ...]:
        """Nodes that are said to serve a model: hints, to be confirmed by a descriptor.

        Raises:
            NovaMeshError: UNAVAILABLE while the mesh is away.
        """
        found = await self._supervisor.call(self._peer.find, profile)
        return cast(tuple[NodeId, ...], found)

    @contextlib.asynccontextmanager
    async def open_tunnel(
        self, node: NodeId, addresses: tuple[str, ...] = ()
    ) -> AsyncIterator[str]:
        """A gRPC address ("unix:…") behind which that node and nobody else answers.

        Args:
            node: Who is asked.
            addresses: Where it may be; without any, where we know it.

        Raises:
            NovaMeshError: UNAVAILABLE if it cannot be reached or the mesh is away, BUSY if too
                many tunnels are open.
        """
        folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="novamesh-"))  # mode 0700
        try:
            socket = folder / "grpc"
            await self._supervisor.call(self._peer.open_tunnel, node, addresses, socket)
            try:
                yield f"unix:{socket}"
            finally:
                with contextlib.suppress(NovaMeshError):  # the tunnel went with the mesh
                    await self._supervisor.call(self._peer.close_tunnel, socket)
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    def learn(self, node: NodeId, addresses: tuple[str, ...]) -> None:
        """Where a node is, from a descriptor that was verified: multiaddrs, "/ip4/…/tcp/…"."""
        self._peers.learn(node, addresses)

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where others may reach us, each with our PeerId; empty while the mesh is away."""
        peer = self._supervisor.value
        return () if peer is None else peer.addresses

    @property
    def connections(self) -> int:
        """How many peers we are connected to."""
        peer = self._supervisor.value
        return 0 if peer is None else peer.connections

    @property
    def restarts(self) -> int:
        """How often the mesh had to be started again."""
        return self._supervisor.restarts

    def _make(self) -> Main[Peer]:
        """The main of one life."""
        peer = self._peer(self._config, self._peers, self._check, self._inbox.put, self._said)
        return peer.run


def _load() -> tuple[type[Supervisor[Peer]], type[Peer]]:
    """What needs libp2p, which takes a second or two to import."""
    from novamesh.mesh.peer import Peer
    from novamesh.mesh.supervisor import Supervisor

    return Supervisor, Peer
