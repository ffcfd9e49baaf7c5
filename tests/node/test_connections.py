"""Connections to a port of this process: so many of one place, and so many in all."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from novamesh_node import connections
from novamesh_node.connections import Connections, split_peer
from novamesh_proto.places import tunnel_end

Line = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Port:
    """A server of this process, and who is connected to it."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.number = 0

    async def dial(self, host: str = "127.0.0.1") -> Line:
        line = await asyncio.open_connection("127.0.0.1", self.number, local_addr=(host, 0))
        self.lines.append(line)
        await asyncio.sleep(0.02)
        return line

    async def ended(self) -> list[Line]:
        """Those whose other end is gone."""
        await asyncio.sleep(0.05)
        return [line for line in self.lines if line[0].at_eof() or line[0].exception()]


@contextlib.asynccontextmanager
async def port() -> AsyncIterator[Port]:
    made, there = Port(), list[asyncio.StreamWriter]()
    server = await asyncio.start_server(lambda _, writer: there.append(writer), "127.0.0.1", 0)
    made.number = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        for writer in (*there, *(line[1] for line in made.lines)):
            writer.close()
        server.close()


async def test_a_place_has_so_many_and_others_are_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connections, "EACH_MAX", 2)
    async with port() as at, port() as other:
        for _ in range(4):
            await at.dial()
            await other.dial()
        await at.dial("127.0.0.2")
        assert Connections(at.number).look() == 2
        assert len(await at.ended()) == 2
        assert at.lines[-1] not in await at.ended()
        assert await other.ended() == []


async def test_when_there_are_too_many_each_place_keeps_a_few(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connections, "ALL_MAX", 5)
    async with port() as at:
        for host in ("127.0.0.2", "127.0.0.3"):
            for _ in range(3):
                await at.dial(host)
        late = await at.dial("127.0.0.4")
        assert Connections(at.number).look() == 2
        assert late not in await at.ended()


async def test_one_is_ended_by_its_name() -> None:
    async with port() as at:
        lines = [await at.dial() for _ in range(3)]
        here = lines[1][1].get_extra_info("sockname")
        looking = Connections(at.number)
        assert looking.end(f"ipv4:127.0.0.1:{here[1]}")
        assert await at.ended() == [lines[1]]
        assert not looking.end("ipv4:192.0.2.1:9")
        assert not looking.end("unix:")


async def test_it_looks_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "EACH_MAX", 0)
    monkeypatch.setattr(connections, "LOOK_S", 0.01)
    async with port() as at:
        looking = asyncio.create_task(Connections(at.number).run())
        reader, _ = await at.dial()
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(1), 10) == b""
        looking.cancel()


async def test_without_a_port_or_a_listing_nothing_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert Connections(0).look() == 0
    monkeypatch.setattr(connections, "LISTINGS", ())
    async with port() as at:
        await at.dial()
        assert Connections(at.number).look() == 0


async def test_a_tunnel_is_ended_by_the_name_of_its_end_and_peers_have_places(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The names are gone from the folder by then, as those of real tunnels are."""
    monkeypatch.setattr(connections, "EACH_MAX", 2)
    with tempfile.TemporaryDirectory(prefix="nm") as folder:
        there = list[asyncio.StreamWriter]()
        path = f"{folder}/s"
        server = await asyncio.start_unix_server(lambda _, writer: there.append(writer), path)
        peers = (b"one---", b"one---", b"one---", b"other-")
        ends = [tunnel_end(b"origin", peer, number) for number, peer in enumerate(peers)]
        lines = [await _dial_as(f"{folder}/{end}", path) for end in ends]
        unnamed = await asyncio.open_unix_connection(path)
        looking = Connections(0, Path(path))
        assert looking.look() == 1
        await asyncio.sleep(0.05)
        assert sum(line[0].at_eof() for line in lines[:3]) == 1
        assert not lines[3][0].at_eof(), "another peer at the same address"
        assert looking.end(f"unix:{folder}/{ends[3]}")
        await asyncio.sleep(0.05)
        assert lines[3][0].at_eof()
        assert not looking.end("unix:")
        assert not unnamed[0].at_eof()
        for writer in (*there, unnamed[1], *(line[1] for line in lines)):
            writer.close()
        server.close()


async def _dial_as(name: str, path: str) -> Line:
    one = socket.socket(socket.AF_UNIX)
    one.bind(name)
    one.setblocking(False)
    await asyncio.get_running_loop().sock_connect(one, path)
    os.unlink(name)
    return await asyncio.open_unix_connection(sock=one)


def test_a_peer_is_split() -> None:
    assert split_peer("unix:/tmp/a%20b") == ("/tmp/a b", 0)
    assert split_peer("ipv6:%5Bfe80::1%25eth0%5D:7") == ("fe80::1", 7)
    assert split_peer("nonsense") == ("", 0)
