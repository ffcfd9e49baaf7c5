"""Sockets to a broker: dialled beside the loop, closed where nobody wants them any more."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading

import pytest

from novamesh_broker import dialling
from novamesh_broker.entrance import Entrance, open_entrance
from novamesh_proto.broker import Broker
from support.mqtt import until
from support.ports import free_port

NOWHERE = open_entrance(Broker("127.0.0.1", 1, False))


async def test_a_line_stands_and_small_packets_do_not_wait_for_each_other() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        entrance = open_entrance(Broker("127.0.0.1", server.getsockname()[1], False))
        with contextlib.closing(await dialling.dial(entrance)) as line:
            assert line.getpeername() == server.getsockname()
            assert line.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize("host", ["127.0.0.1", "no name \0 at all"])
async def test_what_cannot_be_dialled_is_said_to_whoever_waits(host: str) -> None:
    with pytest.raises((OSError, ValueError)):
        await dialling.dial(open_entrance(Broker(host, free_port(), False)))


async def test_a_line_that_is_no_tls_is_closed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        entrance = open_entrance(Broker("127.0.0.1", server.getsockname()[1], True))
        dialled = asyncio.create_task(dialling.dial(entrance))
        there, _ = await asyncio.to_thread(server.accept)
        there.sendall(b"220 this is something else\r\n")
        with pytest.raises(OSError, match="SSL"):
            await dialled
        there.settimeout(10)
        with contextlib.suppress(ConnectionResetError):
            while await asyncio.to_thread(there.recv, 4096):
                pass  # until its end
        there.close()


async def test_a_line_that_comes_when_nobody_wants_it_any_more_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here, there = socket.socketpair()
    gate = threading.Event()

    def slow(entrance: Entrance) -> socket.socket:
        gate.wait(10)
        return here

    monkeypatch.setattr(dialling, "open_line", slow)
    dialled = asyncio.create_task(dialling.dial(NOWHERE))
    await asyncio.sleep(0)
    dialled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await dialled
    gate.set()
    await until(lambda: here.fileno() == -1)
    there.close()
