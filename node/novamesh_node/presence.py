"""Presence: the node's descriptor and its last will at the pool's MQTT broker.

Rules: the newest descriptor is kept there, retained, and expires with it; a node that goes in order
takes it away, one that dies leaves a last will, which others take for a hint. The broker is a
convenience: nothing here raises into the node, waits for it longer than LEAVE_S, or holds a thread
that an owner who stops the node would wait for. MQTT 5 is spoken first, 3.1.1 where it is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiomqtt
import structlog
from aiomqtt import ProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from novamesh_node.clock import Clock
from novamesh_proto import wire
from novamesh_proto.broker import Broker, Contact
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import Envelope, NodeDescriptor
from novamesh_proto.names import GONE, HERE, TOPIC_DESCRIPTOR, TOPIC_PRESENCE, node_topic

DIAL_S: Final = 5.0  # each step of dialling
ANSWER_S: Final = 5.0
LEAVE_S: Final = 2.0
LOOK_S: Final = 1.0  # how soon a new descriptor is published
KEEPALIVE_S: Final = 30
WILL_DELAY_S: Final = 10  # a node that is back by then has not been away
SESSION_S: Final = 60  # longer than the delay, or the will would be sent with its end
QOS: Final = 1
SECRET_BYTES_MAX: Final = 4096
_VERSIONS: Final = {ProtocolVersion.V5: "5", ProtocolVersion.V311: "3.1.1"}
_NOT_SPOKEN: Final = 0x84  # "unsupported protocol version"

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


class Presence:
    """Keeps one node present until it is told to leave.

    `current` gives the newest descriptor, signed; it may raise NovaMeshError.
    """

    def __init__(
        self,
        entrance: Entrance,
        network: str,
        node: str,
        current: Callable[[], Envelope],
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self._entrance = entrance
        self._node = node
        self._descriptor_topic = node_topic(network, node, TOPIC_DESCRIPTOR)
        self._presence_topic = node_topic(network, node, TOPIC_PRESENCE)
        self._current = current
        self._clock = clock
        self._rng = rng
        self._leaving = asyncio.Event()
        self._task: asyncio.Task[Any] | None = None
        self.contact = Contact()

    def describe(self) -> str:
        """For the node's status."""
        return f"{self._entrance.broker}, {self.contact.describe()}"

    def leave(self) -> None:
        """Take the descriptor away and end: within LEAVE_S, at once where there is no broker."""
        self._leaving.set()
        if self._task is not None and not self.contact.reached:
            self._task.cancel()

    async def run(self) -> None:
        """One connection after the other, until `leave`."""
        self._task = asyncio.current_task()
        while not self._leaving.is_set():
            try:
                await self._connect()
            except (aiomqtt.MqttError, OSError, ValueError) as error:
                self._lost(str(error) or type(error).__name__)
            except Exception as bug:  # boundary of the broker: it must never end the node
                _log.error("presence failed", kind=type(bug).__name__)
                self._lost(type(bug).__name__)
            if not self._leaving.is_set():
                with contextlib.suppress(TimeoutError):
                    pause_s = self.contact.pause_s(self._rng)
                    await asyncio.wait_for(self._leaving.wait(), pause_s)

    def _lost(self, trouble: str) -> None:
        if self.contact.lost(trouble, self._now_s()) and not self._leaving.is_set():
            broker = str(self._entrance.broker)
            _log.warning("broker not reached, trying again", broker=broker, error=trouble)

    async def _connect(self) -> None:
        """One connection to its end, in the newest version that the broker speaks."""
        for version in _VERSIONS:
            try:
                async with _connection(self._entrance, self._options(version)) as client:
                    self.contact.found(_VERSIONS[version], self._now_s())
                    _log.info("broker reached", broker=str(self._entrance.broker),
                              mqtt=_VERSIONS[version])  # fmt: skip
                    await self._stay(client, version)
                return
            except aiomqtt.MqttError as error:
                tried = version is ProtocolVersion.V311 or self.contact.reached
                if tried or not _not_spoken(error):
                    raise

    def _options(self, version: ProtocolVersion) -> dict[str, Any]:
        """What is said in CONNECT."""
        broker, password = self._entrance.broker, self._entrance.password
        said: dict[str, Any] = {
            "protocol": version, "identifier": self._node, "keepalive": KEEPALIVE_S,
            "username": broker.user or (self._node if password is not None else None),
            "password": password,
        }  # fmt: skip
        will: Properties | None = None
        if version is ProtocolVersion.V5:
            will = Properties(PacketTypes.WILLMESSAGE)
            will.WillDelayInterval = WILL_DELAY_S
            session = Properties(PacketTypes.CONNECT)
            session.SessionExpiryInterval = SESSION_S
            # A clean start would end the session of before, and send its will.
            said |= {"clean_start": False, "properties": session}
        else:
            said |= {"clean_session": True}
        return said | {"will": aiomqtt.Will(self._presence_topic, GONE, QOS, False, will)}

    async def _stay(self, client: aiomqtt.Client, version: ProtocolVersion) -> None:
        """Be here, and publish each new descriptor, until the line breaks or we leave."""
        broken = asyncio.create_task(_listen(client), name="presence-reader")
        leaving = asyncio.create_task(self._leaving.wait(), name="presence-leaving")
        shown: Envelope | None = None
        try:
            await client.publish(self._presence_topic, HERE, QOS)
            while not leaving.done():
                newest = self._newest()
                if newest is not None and newest is not shown:
                    await self._show(client, newest, version)
                    shown = newest
                first: set[asyncio.Task[Any]] = {broken, leaving}
                await asyncio.wait(first, timeout=LOOK_S, return_when="FIRST_COMPLETED")
                if broken.done():
                    broken.result()
            with contextlib.suppress(TimeoutError, aiomqtt.MqttError):
                async with asyncio.timeout(LEAVE_S / 2):
                    await client.publish(self._descriptor_topic, b"", QOS, retain=True)
        finally:
            broken.cancel()
            leaving.cancel()

    def _newest(self) -> Envelope | None:
        try:
            return self._current()
        except NovaMeshError as error:  # a full disk heals; the old descriptor still counts
            _log.debug("no descriptor to publish", code=error.code.value)
            return None

    async def _show(
        self, client: aiomqtt.Client, newest: Envelope, version: ProtocolVersion
    ) -> None:
        """Leave a descriptor with the broker, for as long as it is good."""
        kept: Properties | None = None
        if version is ProtocolVersion.V5:
            head = wire.decode(NodeDescriptor, newest.payload).header
            kept = Properties(PacketTypes.PUBLISH)
            left_ms = head.expires_at_ms - self._clock.wall_ms()
            kept.MessageExpiryInterval = max(1, -(-left_ms // 1000))
        await client.publish(self._descriptor_topic, wire.encode(newest), QOS, True, kept)

    def _now_s(self) -> float:
        return self._clock.monotonic_ms() / 1000


def _not_spoken(error: aiomqtt.MqttError) -> bool:
    """Whether a refusal may mean the version of MQTT: said so, or without a word."""
    code = error.rc if isinstance(error, aiomqtt.MqttCodeError) else None
    return code is None or getattr(code, "value", code) == _NOT_SPOKEN


async def _listen(client: aiomqtt.Client) -> None:
    """Nothing is sent to us; raises MqttError when the line breaks."""
    async for _ in client.messages:
        pass


@contextlib.asynccontextmanager
async def _connection(entrance: Entrance, said: dict[str, Any]) -> AsyncIterator[aiomqtt.Client]:
    """A client over a socket of our own, which is closed however this ends."""
    line = await _dial(entrance)
    broker = entrance.broker
    client = aiomqtt.Client(
        broker.host, broker.port, logger=_silent, timeout=ANSWER_S,
        max_queued_incoming_messages=1, **said,
    )  # fmt: skip
    paho = client._client
    # The library would dial in a thread of the loop's own pool, and the end of a process waits for
    # those: seconds where a broker says nothing, half a minute where no name server does.
    paho._create_socket = lambda: line  # type: ignore[method-assign]
    try:
        async with client:
            yield client
    finally:
        paho._sock_close()  # else left open, with its reader, where no CONNACK comes
        line.close()


async def _dial(entrance: Entrance) -> socket.socket:
    """A connected socket, its TLS handshake done.

    Dialled in a daemon thread, because looking up a name cannot be broken off.
    """
    loop = asyncio.get_running_loop()
    found: asyncio.Future[socket.socket] = loop.create_future()

    def settle(line: socket.socket | None, error: Exception | None) -> None:
        if line is not None and not found.done():
            found.set_result(line)
        elif line is not None:
            line.close()
        elif error is not None and not found.done():
            found.set_exception(error)

    def work() -> None:
        line, failure = None, None
        try:
            line = _open_line(entrance)
        except (OSError, ValueError) as error:  # ValueError: a name that no name can be
            failure = error
        try:
            loop.call_soon_threadsafe(settle, line, failure)
        except RuntimeError:  # the node has stopped meanwhile
            if line is not None:
                line.close()

    threading.Thread(target=work, name="mqtt-dial", daemon=True).start()
    return await found


def _open_line(entrance: Entrance) -> socket.socket:
    broker = entrance.broker
    line = socket.create_connection((broker.host, broker.port), DIAL_S)
    try:
        # Else the second of two small packets waits for the answer to the first: 40 ms.
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if entrance.tls is not None:
            return entrance.tls.wrap_socket(line, server_hostname=broker.host)
    except (OSError, ValueError):
        line.close()
        raise
    return line
