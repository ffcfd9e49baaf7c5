"""The node in its pool's mesh: its descriptor said there, its service reached through tunnels.

Rules: the mesh is a convenience: what fails in it is one line of log, and the node works on without
it. The newest descriptor is said as soon as there is one; where peers are is learnt from verified
descriptors only. What a tunnel brings is asked of the front like anything else.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

import structlog

from novamesh.mesh.config import MeshConfig
from novamesh.mesh.mesh import Mesh
from novamesh.paths import tunnel_addresses
from novamesh_node.clock import Clock
from novamesh_proto import wire
from novamesh_proto.envelope import Verified
from novamesh_proto.errors import NovaMeshError
from novamesh_proto.limits import DESCRIPTOR_BYTES_MAX, ENDPOINT_BYTES_MAX
from novamesh_proto.messages import Envelope, NodeDescriptor
from novamesh_proto.node_table import open_descriptor

LOOK_S: Final = 1.0
ADDRESSES_MAX: Final = 5  # of ours that a descriptor names
_PEER: Final = "/p2p/"
_LOOPBACK: Final = "/ip4/127."

_log = structlog.get_logger()


class MeshPresence:
    """One node's part in the mesh.

    Args:
        config: Who we are there and where.
        current: Our newest descriptor; raises STORAGE.
        listen_at: Told at which multiaddrs we are found, when that changes.
        clock: The node's.
    """

    def __init__(
        self,
        config: MeshConfig,
        current: Callable[[], Envelope],
        listen_at: Callable[[tuple[str, ...]], None],
        clock: Clock,
    ) -> None:
        self._config = config
        self._current = current
        self._listen_at = listen_at
        self._clock = clock
        self._mesh: Mesh | None = None

    @property
    def peers(self) -> int:
        """Peers that we are connected to."""
        return 0 if self._mesh is None else self._mesh.connections

    async def run(self) -> None:
        """Take part until cancelled; returns where this machine cannot."""
        try:
            async with Mesh(self._config, self._check) as mesh:
                self._mesh = mesh
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._say(mesh), name="mesh-say")
                    tasks.create_task(self._hear(mesh), name="mesh-hear")
        except NovaMeshError as error:
            _log.warning("not in the mesh", error=error.message, hint=error.hint or None)
        finally:
            self._mesh = None
            self._listen_at(())

    async def _say(self, mesh: Mesh) -> None:
        """Our descriptor, whenever there is a newer one."""
        said: Envelope | None = None
        while True:
            self._listen_at(usable_addresses(mesh.addresses))
            with contextlib.suppress(
                NovaMeshError
            ):  # a full disk: what was said before still counts
                newest = self._current()
                if newest != said:
                    said = newest
                    offers = wire.decode(NodeDescriptor, newest.payload).models
                    profiles = tuple(bytes(offer.model_profile) for offer in offers)
                    mesh.publish(wire.encode(newest), profiles)
            await asyncio.sleep(LOOK_S)

    async def _hear(self, mesh: Mesh) -> None:
        """Where others are."""
        async for raw in mesh.descriptors():
            with contextlib.suppress(NovaMeshError):
                said = self._open(raw).message
                mesh.learn(said.header.issuer, tunnel_addresses(said))

    def _check(self, raw: bytes) -> None:
        self._open(raw)

    def _open(self, raw: bytes) -> Verified[NodeDescriptor]:
        sealed = wire.decode(Envelope, raw, DESCRIPTOR_BYTES_MAX)
        return open_descriptor(sealed, self._config.network, self._clock.wall_ms())


def usable_addresses(addresses: tuple[str, ...]) -> tuple[str, ...]:
    """The multiaddrs that a descriptor names: without our own PeerId, which it states anyway.

    Loopback comes last: it is good for nobody but neighbours on this machine.
    """
    plain = dict.fromkeys(_without_peer(each) for each in addresses)
    fitting = [each for each in plain if len(each.encode()) <= ENDPOINT_BYTES_MAX]
    fitting.sort(key=lambda address: address.startswith(_LOOPBACK))
    return tuple(fitting[:ADDRESSES_MAX])


def _without_peer(address: str) -> str:
    """A relayed address keeps the relay's PeerId, which comes before ours."""
    head, found, _ = address.rpartition(_PEER)
    return head if found else address
