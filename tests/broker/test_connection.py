"""One connection, at real brokers: in which version, with what, and how its end is told."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path
from typing import Any

import pytest
from aiomqtt import ProtocolVersion

from novamesh_broker import connection as module
from novamesh_broker.connection import Connection, LastWill, Visitor, connected
from novamesh_broker.entrance import open_entrance
from novamesh_broker.message import Message
from novamesh_proto.broker import Broker
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.names import GONE, HERE, TOPIC_DESCRIPTOR, TOPIC_PRESENCE, node_topic
from support.mosquitto import Mosquitto
from support.mqtt import PEER, a_broker, until
from support.parties import NETWORK

TOPIC = node_topic(NETWORK, PEER, TOPIC_DESCRIPTOR)
WILL_TOPIC = node_topic(NETWORK, PEER, TOPIC_PRESENCE)
KINDS = ["mosquitto", "embedded"]
READER = Visitor("reader", "reader", (TOPIC, WILL_TOPIC))


async def first(connection: Connection) -> Message:
    """What comes first."""
    async with asyncio.timeout(15):
        async for message in connection.messages():
            return message
    raise AssertionError("a connection that ends says so")


@pytest.mark.parametrize("kind", KINDS)
async def test_what_is_retained_is_read_in_the_version_that_is_spoken(
    kind: str, tmp_path: Path
) -> None:
    async with a_broker(kind, tmp_path) as broker:
        entrance = open_entrance(broker)
        async with connected(entrance, Visitor("writer", "writer")) as writer:
            assert writer.version == ("5" if kind == "mosquitto" else "3.1.1")
            await writer.publish(TOPIC, b"kept", retain=True, life_s=60)
        async with connected(entrance, READER) as reader:
            assert await first(reader) == Message(TOPIC, b"kept", True)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_will_is_said_of_who_vanishes_and_not_of_who_goes(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[socket.socket] = []
    opened = module.dialling.open_line
    will = LastWill(WILL_TOPIC, GONE, 1)
    async with a_broker(kind, tmp_path) as broker:
        entrance = open_entrance(broker)
        async with connected(entrance, READER) as reader:
            monkeypatch.setattr(
                module.dialling, "open_line", lambda e: lines.append(opened(e)) or lines[-1]
            )
            async with connected(entrance, Visitor("goes", "goes", will=will)) as one:
                await one.publish(WILL_TOPIC, HERE)
            async with contextlib.AsyncExitStack() as stack:
                other = await stack.enter_async_context(
                    connected(entrance, Visitor("dies", "dies", will=will))
                )
                lines[-1].shutdown(socket.SHUT_RDWR)
                with pytest.raises(NovaMeshError) as caught:
                    await first(other)
                assert caught.value.code is Code.UNAVAILABLE
            assert (await first(reader)).payload == HERE
            assert (await first(reader)).payload == GONE
    assert all(line.fileno() == -1 for line in lines)


@pytest.mark.parametrize("bug", [ValueError, OSError])
async def test_a_bug_of_who_is_there_is_told_as_it_is(bug: type[Exception], tmp_path: Path) -> None:
    async with a_broker("embedded", tmp_path) as broker:
        with pytest.raises(bug, match="a bug"):
            async with connected(open_entrance(broker), READER) as reader:
                raise bug("a bug")
        with pytest.raises(NovaMeshError):
            await reader.publish(TOPIC, b"it was left all the same")


async def test_who_may_read_nothing_is_told_why(tmp_path: Path) -> None:
    async with a_broker("embedded", tmp_path) as broker:
        with pytest.raises(NovaMeshError, match="access list"):
            async with connected(open_entrance(broker), Visitor("x", "x", ("elsewhere/#",))):
                raise AssertionError("the small broker knows no such topic")


async def test_a_password_is_for_the_account_and_a_refusal_is_in_the_brokers_words(
    tmp_path: Path,
) -> None:
    with Mosquitto(tmp_path, {"coordinator": "ears"}) as mosquitto:
        entrance = open_entrance(mosquitto.broker("coordinator"))
        async with connected(entrance, Visitor("any", "coordinator")):
            pass
        with pytest.raises(NovaMeshError, match=r"(?i)not authori") as caught:
            async with connected(entrance, Visitor("any", "somebody")):
                raise AssertionError("nobody has that account")
        assert caught.value.code is Code.UNAVAILABLE


@pytest.mark.parametrize("listens", [False, True])
async def test_nobody_there_and_nobody_who_answers(
    listens: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ANSWER_S", 0.2)
    before = asyncio.all_tasks()
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        if listens:
            mute.listen()
        entrance = open_entrance(Broker("127.0.0.1", mute.getsockname()[1], False))
        with pytest.raises(NovaMeshError) as caught:
            async with connected(entrance, READER):
                raise AssertionError("there is no broker")
    assert caught.value.code is Code.UNAVAILABLE
    assert caught.value.message
    await until(lambda: asyncio.all_tasks() == before)


class Swallower:
    """A library's client that takes a cancellation for an answer."""

    async def publish(self, *said: object) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()


async def test_a_cancellation_that_the_library_swallows_is_one_still() -> None:
    swallower: Any = Swallower()
    publishing = asyncio.create_task(Connection(swallower, ProtocolVersion.V5).publish("t", b""))
    await asyncio.sleep(0)
    publishing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await publishing
