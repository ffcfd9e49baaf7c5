"""Peers of a mesh on this machine: a descriptor that says only where its peer is, and who heard it.

`python -m support.mesh_peers FOLDER NETWORK BOOTSTRAP…` is one of them in a process of its own: it
writes its addresses, then "heard NODE SEQUENCE SECONDS" for what it hears, and says its own
descriptor anew for every line that it reads.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import trio

from novamesh.mesh.config import MeshConfig
from novamesh.mesh.mesh import Mesh
from novamesh.mesh.peer import Peer
from novamesh.mesh.peers import PeerList
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.identity import PrivateKey, format_node_id, parse_node_id
from novamesh_proto.messages import NodeId

NETWORK: Final = "testpool"
TESTS: Final = Path(__file__).parents[1]
PATIENCE_S: Final = 60.0  # never a bar: a slow machine is no bug


@dataclass(frozen=True, slots=True)
class Said:
    """What a test descriptor says."""

    node: NodeId
    addresses: tuple[str, ...]
    sequence: int


def encode(said: Said) -> bytes:
    """The bytes of a test descriptor."""
    addresses = list(said.addresses)
    entry = {"node": format_node_id(said.node), "addresses": addresses, "sequence": said.sequence}
    return json.dumps(entry).encode()


def decode(data: bytes) -> Said:
    """What such bytes say.

    Raises:
        NovaMeshError: BAD_REQUEST if they are none.
    """
    try:
        entry: dict[str, Any] = json.loads(data)
        node = parse_node_id(entry["node"])
        return Said(node, tuple(map(str, entry["addresses"])), int(entry["sequence"]))
    except (ValueError, TypeError, KeyError) as error:
        raise NovaMeshError(Code.BAD_REQUEST, "no test descriptor") from error


def check(data: bytes) -> None:
    """The validator of test descriptors."""
    decode(data)


def mesh_config(folder: Path, bootstrap: tuple[str, ...] = (), **changes: Any) -> MeshConfig:
    """A peer on loopback with a key of its own."""
    key = changes.pop("key", None) or PrivateKey.generate()
    file = folder / f"{format_node_id(key.node_id)}.json"
    config = MeshConfig(key, NETWORK, file, ("/ip4/127.0.0.1/tcp/0",), bootstrap)
    return replace(config, **changes)


class Attendee:
    """A mesh whose descriptors are read, believed and learnt from, as a node would."""

    def __init__(self, config: MeshConfig) -> None:
        self.config = config
        self.node = config.key.node_id
        self.mesh = Mesh(config, check)
        self.heard: dict[NodeId, Said] = {}
        self.heard_s: dict[NodeId, float] = {}  # wall clock, of the newest sequence
        self.sequence = 0

    async def __aenter__(self) -> Attendee:
        await self.mesh.__aenter__()
        self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.mesh.__aexit__(kind, error, trace)
        await self._reader

    def say(self, profiles: tuple[bytes, ...] = ()) -> int:
        """Publish a descriptor with a new sequence, which is returned."""
        self.sequence += 1
        said = Said(self.node, self.mesh.addresses, self.sequence)
        self.mesh.publish(encode(said), profiles)
        return self.sequence

    def knows(self, other: Attendee) -> bool:
        """Whether the other's newest descriptor was heard."""
        said = self.heard.get(other.node)
        return said is not None and said.sequence >= other.sequence

    async def _read(self) -> None:
        async for data in self.mesh.descriptors():
            said = decode(data)
            before = self.heard.get(said.node)
            if before is None or before.sequence < said.sequence:
                self.heard[said.node] = said
                self.heard_s[said.node] = time.time()
                self.mesh.learn(said.node, said.addresses)


class Companion:
    """The trio side of an Attendee: many of them share a thread, as threads of one process do ill.

    `peer.run` is started by whoever makes it.
    """

    def __init__(self, config: MeshConfig) -> None:
        self.config = config
        self.node = config.key.node_id
        self.peers = PeerList(config.peers_file, self.node)
        self.peer = Peer(config, self.peers, check, self._hear, None)
        self.heard: dict[NodeId, Said] = {}
        self.sequence = 0

    def say(self, profiles: tuple[bytes, ...] = ()) -> int:
        """Publish a descriptor with a new sequence, which is returned."""
        self.sequence += 1
        said = Said(self.node, self.peer.addresses, self.sequence)
        self.peer.say(encode(said), profiles)
        return self.sequence

    def knows(self, other: Companion) -> bool:
        """Whether the other's newest descriptor was heard."""
        said = self.heard.get(other.node)
        return said is not None and said.sequence >= other.sequence

    def _hear(self, data: bytes) -> None:
        said = decode(data)
        before = self.heard.get(said.node)
        if before is None or before.sequence < said.sequence:
            self.heard[said.node] = said
            self.peers.learn(said.node, said.addresses)


async def trio_until(condition: Callable[[], object], patience_s: float = PATIENCE_S) -> float:
    """`until` for trio."""
    began_s = time.monotonic()
    with trio.fail_after(patience_s):
        while not condition():  # noqa: ASYNC110  nobody would tell
            await trio.sleep(0.01)
    return time.monotonic() - began_s


async def until(condition: Callable[[], object], patience_s: float = PATIENCE_S) -> float:
    """Wait for something that nobody tells; seconds that it took."""
    began_s = time.monotonic()
    async with asyncio.timeout(patience_s):
        while not condition():  # noqa: ASYNC110  nobody would tell
            await asyncio.sleep(0.01)
    return time.monotonic() - began_s


@contextlib.asynccontextmanager
async def alone(
    folder: Path, bootstrap: tuple[str, ...] = ()
) -> AsyncIterator[tuple[asyncio.subprocess.Process, tuple[str, ...]]]:
    """One in a process of its own, and its addresses; killed in the end if it still runs."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "support.mesh_peers", str(folder), NETWORK, *bootstrap),
        cwd=TESTS,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), PATIENCE_S)
        yield process, tuple(line.decode().split()[1:])
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        await process.wait()
        process._transport.close()  # type: ignore[attr-defined]  # its pipes, while the loop lives


async def _alone(folder: Path, network: str, bootstrap: tuple[str, ...]) -> None:
    seed = os.environ.get("MESH_KEY")
    key = PrivateKey.from_bytes(bytes.fromhex(seed)) if seed else PrivateKey.generate()
    config = replace(mesh_config(folder, bootstrap, key=key), network=network)
    async with Attendee(config) as attendee:
        attendee.say()
        print("at", *attendee.mesh.addresses, flush=True)
        teller = asyncio.create_task(_tell(attendee))
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
        )
        while await reader.readline():
            at_s = time.time()
            print("said", attendee.say(), at_s, flush=True)
        teller.cancel()


async def _tell(attendee: Attendee) -> None:
    told: dict[NodeId, int] = {}
    while True:
        for node, said in list(attendee.heard.items()):
            if told.get(node) != said.sequence:
                told[node] = said.sequence
                at_s = attendee.heard_s[node]
                print("heard", format_node_id(node), said.sequence, at_s, flush=True)
        await asyncio.sleep(0.02)


if __name__ == "__main__":
    asyncio.run(_alone(Path(sys.argv[1]), sys.argv[2], tuple(sys.argv[3:])))
