"""Brokers for tests, one reader of everything, and a node's presence that runs as a task."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiomqtt

from novamesh_broker.entrance import open_entrance
from novamesh_coordinator.embedded_broker import run_broker
from novamesh_node.clock import Clock
from novamesh_node.descriptor import Advertiser
from novamesh_node.presence import Presence
from novamesh_proto.broker import Broker
from novamesh_proto.identity import format_node_id
from novamesh_proto.messages import Envelope
from support.mosquitto import Mosquitto
from support.offers import FACTS
from support.parties import NETWORK, NODE
from support.ports import free_port

AT_ONCE = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]
PEER = format_node_id(NODE.node_id)
WALL = Clock().wall_ms


@contextlib.asynccontextmanager
async def a_broker(kind: str, folder: Path) -> AsyncIterator[Broker]:
    """Mosquitto, which speaks MQTT 5, or the small one, which speaks 3.1.1."""
    if kind == "mosquitto":
        with Mosquitto(folder / "mosquitto") as mosquitto:
            yield mosquitto.broker()
        return
    port = free_port()
    async with run_broker(f"127.0.0.1:{port}", NETWORK):
        yield Broker("127.0.0.1", port, False)


@dataclass
class Reader:
    """Whoever reads topics at a broker, and may write too."""

    client: aiomqtt.Client
    seen: list[tuple[str, bytes, bool]] = field(default_factory=list)

    async def until(self, kind: str, payload: bytes | None = None) -> bytes:
        """The next message of a kind, or with that payload."""
        async with asyncio.timeout(15):
            async for message in self.client.messages:
                assert isinstance(message.payload, bytes)
                topic = str(message.topic)
                self.seen.append((topic, message.payload, bool(message.retain)))
                if topic.endswith(f"/{kind}") and payload in (None, message.payload):
                    return message.payload
        raise AssertionError("the broker is gone")


@contextlib.asynccontextmanager
async def reading(broker: Broker, **options: Any) -> AsyncIterator[Reader]:
    """A reader of all topics of the pool's nodes."""
    if broker.tls:
        entrance = open_entrance(broker)
        options["tls_context"] = entrance.tls
        options |= {"username": broker.user, "password": entrance.password}
    client = aiomqtt.Client(broker.host, broker.port, timeout=5, socket_options=AT_ONCE, **options)
    async with client:
        for kind in ("descriptor", "presence"):
            await client.subscribe(f"novamesh/v1/{NETWORK}/nodes/+/{kind}", qos=1)
        yield Reader(client)


async def retain(broker: Broker, messages: dict[str, bytes]) -> None:
    """Leave messages at a broker that is open."""
    *others, last = messages
    async with aiomqtt.Client(broker.host, broker.port, socket_options=AT_ONCE) as client:
        for topic in others:
            await client.publish(topic, messages[topic], 0, retain=True)
        await client.publish(
            last, messages[last], 1, retain=True
        )  # answered: all of them are there


def advertise() -> Advertiser:
    """A node's advertiser, with the machine's clock."""
    return Advertiser(NODE, NETWORK, FACTS, lambda least: least, lambda: 1)


def node_presence(broker: Broker, current: Callable[[], Envelope], name: str = PEER) -> Presence:
    """A node's presence, not yet running."""
    entrance = open_entrance(broker)
    return Presence(entrance, NETWORK, name, current, Clock(), random.Random(0))


@contextlib.asynccontextmanager
async def running(presence: Any) -> AsyncIterator[asyncio.Task[None]]:
    """Whatever has a `run`, as a task that is cancelled at the end."""
    task = asyncio.create_task(presence.run(), name="presence")
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(holds: Callable[[], object], patience_s: float = 15.0) -> None:
    """Wait for something to become true."""
    async with asyncio.timeout(patience_s):
        while not holds():  # noqa: ASYNC110 - anything may become true
            await asyncio.sleep(0.02)
