"""Nodes of a real pool as its mesh knows them: true descriptors, the node's own part in it.

Nothing is computed there: what such a node offers is a model that nobody asks for.
`python -m support.mesh_nodes FOLDER NETWORK` is one in a process of its own, which writes where it
is found.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Final

from novamesh.mesh.host import with_peer
from novamesh.mesh.mesh import Mesh
from novamesh_node.clock import Clock
from novamesh_node.mesh_presence import MeshPresence
from novamesh_proto.identity import PrivateKey
from novamesh_proto.messages import Envelope, NodeId, ProfileDigest
from support.found_nodes import advert
from support.mesh_peers import TESTS, mesh_config, until
from support.parties import OFFER, digest

MODEL: Final = "nova-elsewhere"
PROFILE: Final = ProfileDigest(digest(MODEL))
FRESH_MS: Final = 30_000  # a descriptor is signed anew before it is older


class MeshNode:
    """`async with MeshNode(…) as node`: one node's part in the mesh, in a thread of its own."""

    def __init__(
        self, folder: Path, network: str, *bootstrap: str, key: PrivateKey | None = None
    ) -> None:
        config = mesh_config(folder, bootstrap, key=key)
        self.config = replace(config, network=network)
        self.key = config.key
        self.node = config.key.node_id
        self.sequence = 0
        self._at: tuple[str, ...] = ()
        self._also: tuple[str, ...] = ()
        self._signed_ms = 0
        self._said: Envelope | None = None
        self._presence = MeshPresence(self.config, self._current, self._listen_at, Clock())

    async def __aenter__(self) -> MeshNode:
        self._task = asyncio.create_task(self._presence.run(), name="mesh node")
        await until(lambda: self._at or self._task.done())
        assert not self._task.done(), "it is not in the mesh"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.leave()

    async def leave(self) -> None:
        """Go, which is harmless when it is gone; its file of peers stays."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where others may dial it, each with its PeerId."""
        return tuple(with_peer(address, self.node) for address in self._at)

    @property
    def peers(self) -> int:
        """How many it is connected to."""
        return self._presence.peers

    @property
    def mesh(self) -> Mesh:
        """What it takes part in."""
        mesh = self._presence._mesh
        assert mesh is not None
        return mesh

    @property
    def known(self) -> set[NodeId]:
        """Whom it knows: itself, its bootstrap, and those whose descriptors it heard."""
        return {self.node, *self.mesh._peers._known}

    def knows(self, node: NodeId) -> tuple[str, ...]:
        """Where a descriptor that it heard and believed says that another is found."""
        return self.mesh._peers.addresses(node)

    def move(self, address: str) -> None:
        """Be found elsewhere too, which a new descriptor says."""
        self._also, self._said = (address,), None

    def _listen_at(self, addresses: tuple[str, ...]) -> None:
        if addresses != self._at:
            self._at, self._said = addresses, None

    def _current(self) -> Envelope:
        now_ms = time.time_ns() // 1_000_000
        if self._said is None or now_ms - self._signed_ms > FRESH_MS:
            self.sequence += 1
            self._signed_ms = now_ms
            offer = replace(OFFER, model_profile=PROFILE, name=MODEL)
            self._said = advert(
                self.key, *self._at, *self._also, now_ms=now_ms, network=self.config.network,
                models=(offer,), sequence=self.sequence,
            )  # fmt: skip
        return self._said


@contextlib.contextmanager
def bootstrap_node(folder: Path, network: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """One in a process of its own, and its address; killed in the end if it still runs."""
    command = [sys.executable, "-W", "ignore", "-m", "support.mesh_nodes", str(folder), network]
    with subprocess.Popen(command, cwd=TESTS, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            assert address, "it ended"
            yield process, address
        finally:
            process.kill()


async def _alone(folder: Path, network: str) -> None:
    async with MeshNode(folder, network) as node:
        print(node.addresses[0], flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_alone(Path(sys.argv[1]), sys.argv[2]))
