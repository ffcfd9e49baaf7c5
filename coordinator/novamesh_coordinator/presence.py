"""Presence: what nodes leave at the pool's MQTT broker, taken into the table of who is here.

Rules: a broker is believed in nothing. A descriptor counts for what its node signed, and only on
the topic of that node; a last will, which anybody with an account may publish, makes us ask the
node itself and changes nothing. Size is looked at first, then who may speak, then the signature;
what is refused is counted by reason. The broker being away disturbs nobody, and is told of once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import socket
import ssl
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiomqtt
import structlog
from aiomqtt import ProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from novamesh_proto import wire
from novamesh_proto.broker import Broker, Contact
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.identity import NODE_ID_TEXT_CHARS, parse_node_id
from novamesh_proto.limits import DESCRIPTOR_BYTES_MAX, POOL_NODES_MAX
from novamesh_proto.messages import Envelope, NodeId
from novamesh_proto.names import (
    EVERY_NODE,
    GONE,
    HERE,
    TOPIC_DESCRIPTOR,
    TOPIC_PRESENCE,
    node_topic,
    split_node_topic,
)
from novamesh_proto.node_table import NodeTable, Source

USER: Final = "coordinator"  # where a password is set and no user is named
QOS: Final = 1
ANSWER_S: Final = 5.0
KEEPALIVE_S: Final = 30
# All that a broker retains comes at once; what finds no room comes again with its renewal.
INBOX_MAX: Final = 16_384
PACKET_BYTES_MAX: Final = 4 * DESCRIPTOR_BYTES_MAX  # a broker that speaks MQTT 5 sends no more
PROBE_EVERY_S: Final = 5.0  # of one node, however often its will comes
SWEEP_S: Final = 10.0
SECRET_BYTES_MAX: Final = 4096
_VERSIONS: Final = {ProtocolVersion.V5: "5", ProtocolVersion.V311: "3.1.1"}
_NOT_SPOKEN: Final = 0x84  # "unsupported protocol version"
_REFUSED: Final = 0x80  # from here on a SUBACK code is a refusal

_log = structlog.get_logger()
# The library would say in its own words what we say once in ours.
_silent = logging.getLogger("novamesh.mqtt")
_silent.addHandler(logging.NullHandler())
_silent.propagate = False


@dataclass(frozen=True, slots=True)
class Entrance:
    """How the broker is entered: what was read once, at the start."""

    broker: Broker
    password: str | None
    tls: ssl.SSLContext | None


def open_entrance(broker: Broker) -> Entrance:
    """Read the files that a broker's settings name.

    Raises:
        NovaMeshError: BAD_CONFIG if a file cannot be read or is none of its kind.
    """
    password, tls = None, None
    try:
        if broker.password_file:
            with Path(broker.password_file).expanduser().open(encoding="utf-8") as file:
                password = file.read(SECRET_BYTES_MAX).strip("\r\n")
        if broker.tls:
            own = broker.ca_file and str(Path(broker.ca_file).expanduser())
            tls = ssl.create_default_context(cafile=own or None)
    except (OSError, ValueError) as error:
        named = broker.password_file if password is None and broker.password_file else ""
        raise NovaMeshError(
            Code.BAD_CONFIG, f"cannot use {named or broker.ca_file or broker}: {error}",
            "mqtt_password_file holds a password, mqtt_ca certificates in PEM",
        ) from error  # fmt: skip
    return Entrance(broker, password, tls)


@dataclass(frozen=True, slots=True)
class Doors:
    """What presence reaches of the coordinator.

    `admit` raises NovaMeshError for whom the pool does not know; `probe` asks a node whether it
    still listens; `refused` counts by error code.
    """

    admit: Callable[[NodeId], None]
    probe: Callable[[NodeId], Awaitable[object]]
    refused: Callable[[str], None]
    now_ms: Callable[[], int]
    monotonic_s: Callable[[], float]


class Presence:
    """Fills the table until it is cancelled."""

    def __init__(
        self, entrance: Entrance, network: str, table: NodeTable, doors: Doors, rng: random.Random
    ) -> None:
        self._entrance = entrance
        self._network = network
        self._table = table
        self._doors = doors
        self._rng = rng
        self._probed: OrderedDict[NodeId, float] = OrderedDict()
        self.contact = Contact()

    async def run(self) -> None:
        """One connection after the other."""
        while True:
            try:
                await self._connect()
            except (aiomqtt.MqttError, OSError, ValueError) as error:
                self._lost(str(error) or type(error).__name__)
            except Exception as bug:  # boundary of the broker: it must never end the coordinator
                _log.error("presence failed", kind=type(bug).__name__)
                self._lost(type(bug).__name__)
            await asyncio.sleep(self.contact.pause_s(self._rng))

    async def sweep(self) -> None:
        """Forget, from time to time, whose descriptor nobody would take any more."""
        while True:
            await asyncio.sleep(SWEEP_S)
            self._table.forget(self._doors.now_ms())

    async def take(self, topic: str, payload: bytes, retained: bool) -> None:
        """Take one message, or count why not."""
        try:
            if len(payload) > DESCRIPTOR_BYTES_MAX:
                raise NovaMeshError(Code.TOO_LARGE, f"a message of {len(payload)} bytes")
            node, kind = self._whose(topic)
            if kind == TOPIC_DESCRIPTOR and payload:
                self._take_descriptor(node, payload)
            elif kind == TOPIC_DESCRIPTOR or (payload == GONE and not retained):
                await self._ask(node)
            elif payload != HERE:
                raise NovaMeshError(Code.BAD_REQUEST, "this is neither a birth nor a last will")
        except NovaMeshError as error:
            self._doors.refused(error.code.value)

    def _whose(self, topic: str) -> tuple[NodeId, str]:
        found = split_node_topic(self._network, topic)
        if found is None or len(found[0]) != NODE_ID_TEXT_CHARS:
            raise NovaMeshError(Code.BAD_REQUEST, "this is no topic of a node of this pool")
        node = parse_node_id(found[0])
        self._doors.admit(node)
        return node, found[1]

    def _take_descriptor(self, node: NodeId, payload: bytes) -> None:
        sealed = wire.decode(Envelope, payload, DESCRIPTOR_BYTES_MAX)
        if any(signature.keyid != node for signature in sealed.signatures):
            raise NovaMeshError(Code.BAD_KEY, "the topic is not that of who signed")
        self._table.take(sealed, Source.MQTT, self._doors.now_ms())

    async def _ask(self, node: NodeId) -> None:
        """A hint that a node is gone: ask it, not too often."""
        now_s = self._doors.monotonic_s()
        if now_s - self._probed.get(node, -PROBE_EVERY_S) < PROBE_EVERY_S:
            return
        self._probed[node] = now_s
        self._probed.move_to_end(node)
        if len(self._probed) > POOL_NODES_MAX:
            self._probed.popitem(last=False)
        await self._doors.probe(node)

    def _lost(self, trouble: str) -> None:
        if self.contact.lost(trouble, self._doors.monotonic_s()):
            broker = str(self._entrance.broker)
            _log.warning("broker not reached, trying again", broker=broker, error=trouble)

    async def _connect(self) -> None:
        """One connection to its end, in the newest version that the broker speaks."""
        for version in _VERSIONS:
            try:
                async with _connection(self._entrance, version) as client:
                    await self._listen(client, _VERSIONS[version])
                return
            except aiomqtt.MqttError as error:
                tried = version is ProtocolVersion.V311 or self.contact.reached
                if tried or not _not_spoken(error):
                    raise

    async def _listen(self, client: aiomqtt.Client, version: str) -> None:
        """Take what comes until the line breaks."""
        kinds = (TOPIC_DESCRIPTOR, TOPIC_PRESENCE)
        topics = [(node_topic(self._network, EVERY_NODE, kind), QOS) for kind in kinds]
        granted = await client.subscribe(topics)
        if any(getattr(code, "value", code) >= _REFUSED for code in granted):
            raise aiomqtt.MqttError("it lets us read nothing: see its access list")
        self.contact.found(version, self._doors.monotonic_s())
        _log.info("broker reached", broker=str(self._entrance.broker), mqtt=version)
        async for message in client.messages:
            payload = message.payload if isinstance(message.payload, bytes) else b""
            await self.take(str(message.topic), payload, bool(message.retain))


def _not_spoken(error: aiomqtt.MqttError) -> bool:
    """Whether a refusal may mean the version of MQTT: said so, or without a word."""
    code = error.rc if isinstance(error, aiomqtt.MqttCodeError) else None
    return code is None or getattr(code, "value", code) == _NOT_SPOKEN


@contextlib.asynccontextmanager
async def _connection(
    entrance: Entrance, version: ProtocolVersion
) -> AsyncIterator[aiomqtt.Client]:
    """A client whose socket is closed however this ends."""
    broker, password = entrance.broker, entrance.password
    said: dict[str, Any] = {"clean_session": True}
    if version is ProtocolVersion.V5:
        bound = Properties(PacketTypes.CONNECT)
        bound.MaximumPacketSize = PACKET_BYTES_MAX
        said = {"clean_start": True, "properties": bound}
    client = aiomqtt.Client(
        broker.host, broker.port, protocol=version, logger=_silent, timeout=ANSWER_S,
        identifier=f"{USER}-{os.urandom(8).hex()}", keepalive=KEEPALIVE_S,
        username=broker.user or (USER if password is not None else None), password=password,
        tls_context=entrance.tls, max_queued_incoming_messages=INBOX_MAX,
        # Else the second of two small packets waits for the answer to the first: 40 ms.
        socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)], **said,
    )  # fmt: skip
    try:
        async with client:
            yield client
    finally:
        client._client._sock_close()  # else left open, with its reader, where no CONNACK comes
