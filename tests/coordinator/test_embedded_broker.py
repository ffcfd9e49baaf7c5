"""The small broker: what it carries, and where it stops."""

from __future__ import annotations

import asyncio
import contextlib

import aiomqtt
import pytest
import structlog

from novamesh_coordinator import embedded_broker as module
from novamesh_coordinator.embedded_broker import REFUSAL, run_broker
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.identity import format_node_id
from novamesh_proto.names import node_topic
from support.mqtt import PEER
from support.parties import NETWORK, party
from support.ports import free_port

CONNECT = bytes.fromhex("100d 0004 4d515454 04 02 001e 0001 61")
DESCRIPTOR = node_topic(NETWORK, PEER, "descriptor")


@pytest.fixture
def port() -> int:
    return free_port()


async def ended(reader: asyncio.StreamReader) -> bytes:
    """What comes until the other side hangs up."""
    return await asyncio.wait_for(reader.read(), 15)


async def test_another_version_is_refused_in_words_and_this_one_taken(port: int) -> None:
    async with run_broker(f"127.0.0.1:{port}", NETWORK):
        for version, answer in ((5, REFUSAL), (4, b"\x20\x02\x00\x00")):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(CONNECT[:8] + bytes([version]) + CONNECT[9:])
            assert await reader.readexactly(4) == answer
            writer.close()


async def test_only_topics_of_the_pools_nodes_are_carried(port: int) -> None:
    async with (
        run_broker(f"127.0.0.1:{port}", NETWORK),
        aiomqtt.Client("127.0.0.1", port) as client,
    ):
        granted = [
            (await client.subscribe(each, 1))[0]
            for each in ("#", "other", "novamesh/v1/+/nodes/+/descriptor",
                         node_topic(NETWORK, "+", "descriptor"))
        ]  # fmt: skip
        assert granted == [0x80, 0x80, 0x80, 1]
        for topic in ("other", node_topic(NETWORK, "short", "descriptor"), DESCRIPTOR):
            await client.publish(topic, topic, 1)
        async with asyncio.timeout(15):
            message = await anext(client.messages)
        assert (str(message.topic), message.payload) == (DESCRIPTOR, DESCRIPTOR.encode())


async def test_no_more_is_retained_than_there_is_room_for(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETAINED_MAX", 1)
    second = node_topic(NETWORK, format_node_id(party("second").node_id), "descriptor")
    async with (
        run_broker(f"127.0.0.1:{port}", NETWORK),
        aiomqtt.Client("127.0.0.1", port) as client,
    ):
        await client.publish(DESCRIPTOR, b"one", 1, retain=True)
        await client.publish(second, b"two", 1, retain=True)
        await client.publish(DESCRIPTOR, b"three", 1, retain=True)
        await client.subscribe(node_topic(NETWORK, "+", "descriptor"), 1)
        async with asyncio.timeout(15):
            assert (await anext(client.messages)).payload == b"three"
        assert len(client.messages) == 0


async def test_who_sends_too_much_or_nothing_is_hung_up_on(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIRST_S", 0.1)
    async with run_broker(f"127.0.0.1:{port}", NETWORK):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await ended(reader) == b""
        writer.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(CONNECT)
        assert await reader.readexactly(4) == b"\x20\x02\x00\x00"
        topic = DESCRIPTOR.encode()
        writer.write(b"\x30\x80\x80\x04" + len(topic).to_bytes(2, "big") + topic + bytes(60_000))
        with contextlib.suppress(ConnectionResetError):
            assert await ended(reader) == b""
        writer.close()


async def test_whoever_finds_no_place_is_hung_up_on(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CONNECTIONS_MAX", 1)
    async with (
        run_broker(f"127.0.0.1:{port}", NETWORK),
        aiomqtt.Client("127.0.0.1", port) as client,
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await ended(reader) == b""
        writer.close()
        await client.publish(DESCRIPTOR, b"still here", 1)


async def test_a_port_that_is_taken_is_named(port: int) -> None:
    async with run_broker(f"127.0.0.1:{port}", NETWORK):
        with pytest.raises(NovaMeshError, match=str(port)) as caught:
            async with run_broker(f"127.0.0.1:{port}", NETWORK):
                raise AssertionError("two brokers on one port")
        assert caught.value.code is Code.CONFLICT


@pytest.mark.parametrize(("host", "noted"), [("127.0.0.1", False), ("0.0.0.0", True)])
async def test_beyond_this_machine_it_says_that_it_is_open(
    host: str, noted: bool, port: int
) -> None:
    with structlog.testing.capture_logs() as logs:
        async with run_broker(f"{host}:{port}", NETWORK):
            pass
    assert ("note" in logs[0]) is noted
