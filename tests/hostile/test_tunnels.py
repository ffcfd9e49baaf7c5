"""Two peers of the mesh ask a node through tunnels: what one takes, the other does not miss."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from novamesh.mesh import tunnel
from novamesh_node import doorway
from novamesh_node.direct_service import listen
from novamesh_proto import wire
from novamesh_proto.buckets import Rate
from novamesh_proto.errors import Code
from novamesh_proto.messages import ErrorDetail
from novamesh_proto.names import ERROR_METADATA
from novamesh_proto.v1 import coordinator_pb2 as pb
from support.mesh_peers import Attendee, mesh_config
from support.own_front import open_front
from support.parties import NODE

SERVICE = pb.DESCRIPTOR.services_by_name["PoolService"].full_name
CALL_S = 30.0
PATIENCE = 400


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short one: unix sockets have paths of at most 104 bytes."""
    with tempfile.TemporaryDirectory(prefix="nm") as name:
        yield Path(name)


@dataclass
class Peer:
    """Somebody in the mesh with lines through a tunnel to the node, who says what he likes."""

    lines: list[grpc.aio.Channel]

    def begin(self, method: str, line: int = 0) -> Any:
        """A call that says nothing yet."""
        call = self.lines[line].stream_unary(f"/{SERVICE}/{method}", bytes, bytes)
        return call(timeout=CALL_S)

    async def ask(self, method: str) -> Code | None:
        """A whole call with an empty message: what it was refused with."""
        call = self.begin(method)
        try:
            await call.write(b"")
            await call.done_writing()
            await call
        except grpc.aio.AioRpcError as error:
            told = dict(error.trailing_metadata() or ())
            if ERROR_METADATA not in told:  # gRPC's own: the line broke, or there is none
                return Code.UNAVAILABLE
            return Code(wire.decode(ErrorDetail, told[ERROR_METADATA]).code)
        return None


@contextlib.asynccontextmanager
async def peer(folder: Path, node: Attendee, lines: int = 1) -> AsyncIterator[Peer]:
    async with contextlib.AsyncExitStack() as stack:
        client = await stack.enter_async_context(Attendee(mesh_config(folder, listen=())))
        tunnels = client.mesh.open_tunnel(node.node, node.mesh.addresses)
        address = await stack.enter_async_context(tunnels)
        options = (("grpc.use_local_subchannel_pool", 1),)
        made = [grpc.aio.insecure_channel(address, options=options) for _ in range(lines)]
        for line in made:
            stack.push_async_callback(line.close, None)
        yield Peer(made)


def _names(folder: Path) -> list[Path]:
    return list(folder.glob("t-*"))


@contextlib.asynccontextmanager
async def node_with_tunnels(folder: Path) -> AsyncIterator[Attendee]:
    socket = folder / "grpc"
    async with (
        open_front(folder) as counter,
        listen(counter.front, NODE, "", socket),
        Attendee(mesh_config(folder, serve_socket=socket)) as node,
    ):
        yield node
    assert _names(folder) == [], "a tunnel's end leaves its name nowhere"


async def test_what_one_peer_takes_the_other_does_not_miss(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All calls that it may begin, all jobs that it may hand in, all tunnels that it may open."""
    monkeypatch.setattr(doorway, "EACH_MAX", 8)
    monkeypatch.setattr(doorway, "HEAR_S", CALL_S)
    monkeypatch.setattr(doorway, "JOB_RATE", Rate(0.001, 4))
    most = tunnel.STREAMS_PER_PEER_MAX
    async with node_with_tunnels(folder) as node, peer(folder, node, most) as hostile:
        assert [await hostile.ask("Submit") for _ in range(5)] == [Code.BAD_REQUEST] * 4 + [
            Code.BUSY
        ]
        begun = [hostile.begin("Hello", line) for line in range(most)]
        for _ in range(PATIENCE):  # until all of them have begun
            if await hostile.ask("Hello") is Code.BUSY:
                break
            await asyncio.sleep(0.05)
        else:
            raise AssertionError("it may begin as many calls as it likes")
        async with peer(folder, node) as honest:
            assert await honest.ask("Hello") is None
            assert await honest.ask("Submit") is Code.BAD_REQUEST, "it is read"
        for call in begun:
            call.cancel()


async def test_peers_of_one_address_leave_tunnels_to_others(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many names they have; here an address is whatever the node is told that it is."""
    monkeypatch.setattr(tunnel, "STREAMS_PER_ORIGIN_MAX", 2)
    address = "192.0.2.1"
    monkeypatch.setattr(tunnel, "place_of_host", lambda _: address)
    async with (
        node_with_tunnels(folder) as node,
        peer(folder, node) as one,
        peer(folder, node) as two,
        peer(folder, node) as three,
    ):
        assert [await each.ask("Hello") for each in (one, two, three)] == [
            None,
            None,
            Code.UNAVAILABLE,
        ]
        address = "192.0.2.2"
        async with peer(folder, node) as elsewhere:
            assert await elsewhere.ask("Hello") is None
