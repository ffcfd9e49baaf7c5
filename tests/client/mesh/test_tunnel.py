"""gRPC through a libp2p stream: bytes arrive whole, ends are told, floods are refused."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc.aio
import pytest

from novamesh.mesh import tunnel
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.identity import PrivateKey
from support.mesh_peers import Attendee, mesh_config, until

BIG = os.urandom(3 << 20)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short one: unix sockets have paths of at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="nm") as name:
        yield Path(name)


class Echo(grpc.GenericRpcHandler):
    """A gRPC service that answers what it was asked, and counts."""

    def __init__(self) -> None:
        self.asked = 0

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        """One handler for every method."""

        async def answer(request: bytes, context: object) -> bytes:
            self.asked += 1
            return request

        return grpc.unary_unary_rpc_method_handler(answer)


@contextlib.asynccontextmanager
async def _node(folder: Path) -> AsyncIterator[tuple[Attendee, Echo]]:
    socket = folder / "node"
    async with (
        _node_at(socket) as echo,
        Attendee(mesh_config(folder, serve_socket=socket)) as node,
    ):
        yield node, echo


@contextlib.asynccontextmanager
async def _node_at(socket: Path) -> AsyncIterator[Echo]:
    echo = Echo()
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", 16 << 20)])
    server.add_generic_rpc_handlers((echo,))
    server.add_insecure_port(f"unix:{socket}")
    await server.start()
    try:
        yield echo
    finally:
        await server.stop(None)


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def _there(path: Path) -> bool:
    return path.exists()


async def _ask(address: str, question: bytes) -> bytes:
    options = [("grpc.max_receive_message_length", 16 << 20), ("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        return bytes(await channel.unary_unary("/test/Ask")(question, timeout=60))


async def test_calls_go_through_and_the_socket_is_nobody_elses(folder: Path) -> None:
    async with (
        _node(folder) as (node, echo),
        Attendee(mesh_config(folder)) as client,
        client.mesh.open_tunnel(node.node, node.mesh.addresses) as address,
    ):
        path = Path(address.removeprefix("unix:"))
        assert [_mode(path), _mode(path.parent)] == [0o600, 0o700]
        assert await _ask(address, b"question") == b"question"
        assert await _ask(address, BIG) == BIG
        many = [_ask(address, bytes([number])) for number in range(5)]
        assert await asyncio.gather(*many) == [bytes([number]) for number in range(5)]
    assert not _there(path.parent)
    assert echo.asked == 7


async def test_node_that_goes_is_unavailable_at_once(folder: Path) -> None:
    async with Attendee(mesh_config(folder)) as client, contextlib.AsyncExitStack() as stack:
        node, _ = await stack.enter_async_context(_node(folder))
        async with client.mesh.open_tunnel(node.node, node.mesh.addresses) as address:
            assert await _ask(address, b"1") == b"1"
            await stack.aclose()
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await _ask(address, b"2")
            assert raised.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_peer_that_is_no_node_or_is_not_there_is_unavailable(folder: Path) -> None:
    async with Attendee(mesh_config(folder)) as other, Attendee(mesh_config(folder)) as client:
        nobody = PrivateKey.generate().node_id
        for node, addresses in ((other.node, other.mesh.addresses), (nobody, ()), (nobody, ("x",))):
            with pytest.raises(NovaMeshError) as raised:
                async with client.mesh.open_tunnel(node, addresses):
                    raise AssertionError
            assert raised.value.code is Code.UNAVAILABLE


async def test_known_peer_needs_no_addresses(folder: Path) -> None:
    async with _node(folder) as (node, _), Attendee(mesh_config(folder)) as client:
        client.mesh.learn(node.node, node.mesh.addresses)
        async with client.mesh.open_tunnel(node.node) as address:
            assert await _ask(address, b"question") == b"question"


async def test_node_serves_so_many_streams_of_one_peer(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tunnel, "CONNECTIONS_MAX", 64)
    async with (
        _node(folder) as (node, _),
        Attendee(mesh_config(folder)) as client,
        client.mesh.open_tunnel(node.node, node.mesh.addresses) as address,
    ):
        path = address.removeprefix("unix:")
        ends: list[asyncio.Task[bytes]] = []
        writers = []
        for _ in range(tunnel.STREAMS_PER_PEER_MAX + 3):
            reader, writer = await asyncio.open_unix_connection(path)
            writers.append(writer)
            ends.append(asyncio.create_task(_read(reader)))
        await until(lambda: sum(end.done() for end in ends) >= 3)
        assert await _ask_until_served(address, writers) == b"again"
        await asyncio.gather(*ends)


async def _read(reader: asyncio.StreamReader) -> bytes:
    """To the end, however it comes."""
    with contextlib.suppress(ConnectionError):
        return await reader.read()
    return b""


async def _ask_until_served(address: str, writers: list[asyncio.StreamWriter]) -> bytes:
    """What comes when the idle ones have gone."""
    for writer in writers:
        writer.close()
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(grpc.aio.AioRpcError):
                return await _ask(address, b"again")
            await asyncio.sleep(0.05)


async def test_node_whose_own_server_is_away_is_unavailable(folder: Path) -> None:
    socket = folder / "node"
    async with (
        Attendee(mesh_config(folder, serve_socket=socket)) as node,
        Attendee(mesh_config(folder)) as client,
    ):
        with contextlib.suppress(NovaMeshError):  # told at once, or by the first call
            async with client.mesh.open_tunnel(node.node, node.mesh.addresses) as address:
                with pytest.raises(grpc.aio.AioRpcError) as raised:
                    await _ask(address, b"question")
                assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        async with _node_at(socket), client.mesh.open_tunnel(node.node) as address:
            assert await _ask(address, b"question") == b"question"
