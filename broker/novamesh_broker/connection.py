"""One connection to a broker, in the newest version of MQTT that it speaks.

Rules: 5 is spoken first, 3.1.1 where it is refused; whatever goes wrong is UNAVAILABLE, in the
words of who noticed it; however it ends its socket is closed. Only this module knows MQTT.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any, Final

import aiomqtt
from aiomqtt import MqttError, ProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from novamesh_broker import dialling
from novamesh_broker.entrance import Entrance
from novamesh_broker.message import Message
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.limits import DESCRIPTOR_BYTES_MAX

ANSWER_S: Final = 5.0
KEEPALIVE_S: Final = 30
SESSION_S: Final = 60  # longer than any will's delay, or the will would be sent with its end
QOS: Final = 1
# All that a broker retains comes at once; what finds no room comes again with its renewal.
INBOX_MAX: Final = 16_384
PACKET_BYTES_MAX: Final = 4 * DESCRIPTOR_BYTES_MAX  # a broker that speaks MQTT 5 sends no more
_VERSIONS: Final = {ProtocolVersion.V5: "5", ProtocolVersion.V311: "3.1.1"}
_NOT_SPOKEN: Final = 0x84  # "unsupported protocol version"
_REFUSED: Final = 0x80  # from here on a SUBACK code is a refusal

# The library would say in its own words what we say once in ours.
_silent = logging.getLogger("novamesh.mqtt")
_silent.addHandler(logging.NullHandler())
_silent.propagate = False


@dataclass(frozen=True, slots=True)
class LastWill:
    """What the broker says when we have vanished for `delay_s` seconds; at once in MQTT 3.1.1."""

    topic: str
    payload: bytes
    delay_s: int


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who comes, and what for.

    `account` is the user where a password is set and no user is named. Whoever leaves a will is
    known again when it comes back; others always come for the first time.
    """

    client_id: str
    account: str
    topics: tuple[str, ...] = ()  # what it wants to read
    will: LastWill | None = None


class Connection:
    """A connection that stands; everything raises UNAVAILABLE when it does no more."""

    def __init__(self, client: aiomqtt.Client, version: ProtocolVersion) -> None:
        self._client = client
        self._speaks_5 = version is ProtocolVersion.V5
        self.version = _VERSIONS[version]

    async def publish(
        self, topic: str, payload: bytes, *, retain: bool = False, life_s: int | None = None
    ) -> None:
        """Publish; what is retained is forgotten after `life_s`, by a broker that speaks MQTT 5."""
        kept: Properties | None = None
        if life_s is not None and self._speaks_5:
            kept = Properties(PacketTypes.PUBLISH)
            kept.MessageExpiryInterval = life_s
        with _in_our_words():
            await self._client.publish(topic, payload, QOS, retain, kept)

    async def messages(self) -> AsyncGenerator[Message]:
        """What comes, until the connection breaks."""
        with _in_our_words():
            async for one in self._client.messages:
                payload = one.payload if isinstance(one.payload, bytes) else b""
                yield Message(str(one.topic), payload, bool(one.retain))
        raise NovaMeshError(Code.UNAVAILABLE, "the broker hung up")

    async def subscribe(self, topics: tuple[str, ...]) -> None:
        """Read these topics from now on."""
        with _in_our_words():
            granted = await self._client.subscribe([(topic, QOS) for topic in topics])
        if any(getattr(code, "value", code) >= _REFUSED for code in granted):
            raise NovaMeshError(Code.UNAVAILABLE, "it lets us read nothing: see its access list")


@contextlib.asynccontextmanager
async def connected(entrance: Entrance, visitor: Visitor) -> AsyncIterator[Connection]:
    """A connection, and what the visitor wants to read, while inside.

    Raises:
        NovaMeshError: UNAVAILABLE if there is none, or no more.
    """
    stack = contextlib.AsyncExitStack()
    try:
        with _in_our_words():
            connection = await _greet(stack, entrance, visitor)
            if visitor.topics:
                await connection.subscribe(visitor.topics)
        yield connection  # what is raised there is said in its own words
    finally:
        with _in_our_words():
            await stack.aclose()


async def _greet(
    stack: contextlib.AsyncExitStack, entrance: Entrance, visitor: Visitor
) -> Connection:
    """Connect in the newest version that is spoken there."""
    *newer, oldest = _VERSIONS
    for version in newer:
        try:
            client = await stack.enter_async_context(_opened(entrance, visitor, version))
            return Connection(client, version)
        except MqttError as error:
            if not _not_spoken(error):
                raise
    client = await stack.enter_async_context(_opened(entrance, visitor, oldest))
    return Connection(client, oldest)


def _not_spoken(error: MqttError) -> bool:
    """Whether a refusal may mean the version of MQTT: said so, or without a word."""
    code = error.rc if isinstance(error, aiomqtt.MqttCodeError) else None
    return code is None or getattr(code, "value", code) == _NOT_SPOKEN


@contextlib.asynccontextmanager
async def _opened(
    entrance: Entrance, visitor: Visitor, version: ProtocolVersion
) -> AsyncIterator[aiomqtt.Client]:
    """A client over a socket of our own, which is closed however this ends."""
    broker, password = entrance.broker, entrance.password
    with contextlib.closing(await dialling.dial(entrance)) as line:
        client = aiomqtt.Client(
            broker.host, broker.port, protocol=version, identifier=visitor.client_id,
            username=broker.user or (visitor.account if password is not None else None),
            password=password, keepalive=KEEPALIVE_S, timeout=ANSWER_S, logger=_silent,
            max_queued_incoming_messages=INBOX_MAX, **_said(visitor, version),
        )  # fmt: skip
        paho = client._client
        # The library would dial itself, in a thread that the end of a process waits for.
        paho._create_socket = lambda: line  # type: ignore[method-assign]
        try:
            async with client:
                yield client
        finally:
            paho._sock_close()  # else left open, with its reader, where no CONNACK comes


def _said(visitor: Visitor, version: ProtocolVersion) -> dict[str, Any]:
    """What the versions say differently: about the session, its bounds and its end."""
    will = visitor.will
    if version is not ProtocolVersion.V5:
        left = will and aiomqtt.Will(will.topic, will.payload, QOS, False)
        return {"clean_session": True, "will": left}
    session = Properties(PacketTypes.CONNECT)
    session.MaximumPacketSize = PACKET_BYTES_MAX
    if will is None:
        return {"clean_start": True, "properties": session}
    session.SessionExpiryInterval = SESSION_S
    late = Properties(PacketTypes.WILLMESSAGE)
    late.WillDelayInterval = will.delay_s
    left = aiomqtt.Will(will.topic, will.payload, QOS, False, late)
    # A clean start would end the session of before, and send its will.
    return {"clean_start": False, "properties": session, "will": left}


@contextlib.contextmanager
def _in_our_words() -> Iterator[None]:
    """Errors as ours; a cancellation that the library swallows, as `wait_for` may, is one still."""
    task = asyncio.current_task()
    cancelled = task.cancelling() if task else 0
    try:
        yield
    except (MqttError, OSError, ValueError) as error:
        raise NovaMeshError(Code.UNAVAILABLE, str(error) or type(error).__name__) from error
    if task and task.cancelling() > cancelled:
        raise asyncio.CancelledError
