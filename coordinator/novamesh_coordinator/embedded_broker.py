"""A small MQTT 3.1.1 broker inside the coordinator, for a pool that has no broker of its own.

Rules: it is open to whoever reaches its address, so it listens on loopback unless told otherwise;
it carries the topics of this pool's nodes and no other; connections, packets, what it retains and
how long somebody may be silent are bounded here, because amqtt bounds none of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Final, cast

import structlog
from amqtt.adapters import StreamReaderAdapter, StreamWriterAdapter
from amqtt.broker import Broker, BrokerContext
from amqtt.contexts import Action
from amqtt.plugins.base import BaseTopicPlugin
from amqtt.session import Session

from novamesh_coordinator.config import split_address
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.identity import NODE_ID_TEXT_CHARS
from novamesh_proto.limits import DESCRIPTOR_BYTES_MAX
from novamesh_proto.names import split_node_topic

CONNECTIONS_MAX: Final = 1024
RETAINED_MAX: Final = 4096
READ_BYTES_MAX: Final = 2 * DESCRIPTOR_BYTES_MAX  # of anything that is read in one go
FIRST_S: Final = 5.0  # until the first byte, and for the rest of any packet
SILENT_S: Final = 180.0
REFUSAL: Final = b"\x20\x02\x00\x01"  # CONNACK: another version of MQTT, please
_LOOPBACK: Final = ("127.", "localhost", "[::1]")

_log = structlog.get_logger()


@contextlib.asynccontextmanager
async def run_broker(address: str, network: str) -> AsyncIterator[None]:
    """Serve a pool's presence at HOST:PORT while inside.

    Raises:
        NovaMeshError: CONFLICT if nobody can listen there.
    """
    # It has a line for each odd connection, and tells nothing else.
    logging.getLogger("amqtt").setLevel(logging.CRITICAL)
    plugins = {
        "amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True},
        f"{PoolTopics.__module__}.PoolTopics": {"network": network},
    }
    broker = Broker({"listeners": {"default": {"type": "external"}}, "plugins": plugins})
    connections: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = cast("asyncio.Task[None]", asyncio.current_task())
        if len(connections) >= CONNECTIONS_MAX:
            writer.close()
            return
        connections.add(task)
        try:
            bounded: Any = _Bounded(StreamReaderAdapter(reader), lambda: writer.write(REFUSAL))
            await broker.external_connected(bounded, StreamWriterAdapter(writer), "default")
        except Exception as bug:  # boundary of a connection: no stranger's bytes end the others
            _log.debug("a broker's connection failed", kind=type(bug).__name__)
        finally:
            connections.discard(task)
            writer.close()

    await broker.start()
    try:
        async with await _listen(connected, address):
            host, _ = split_address(address, "broker_listen")
            warn = None if host.startswith(_LOOPBACK) else "anybody who reaches it may publish"
            _log.info(
                "embedded broker listens", address=address, **({"note": warn} if warn else {})
            )
            yield
            for task in connections:
                task.cancel()
    finally:
        await broker.shutdown()


async def _listen(connected: Any, address: str) -> asyncio.Server:
    host, port = split_address(address, "broker_listen")
    try:
        return await asyncio.start_server(connected, host.strip("[]"), port)
    except OSError as error:
        raise NovaMeshError(
            Code.CONFLICT, f"the embedded broker cannot listen on {address}: {error.strerror}",
            "choose another address with --broker-listen HOST:PORT",
        ) from error  # fmt: skip


class PoolTopics(BaseTopicPlugin):  # type: ignore[misc]
    """What may be published and subscribed: topics of one pool's nodes, not too many."""

    @dataclass
    class Config:
        """Which pool."""

        network: str = ""

    async def topic_filtering(
        self,
        *,
        session: Session | None = None,
        topic: str | None = None,
        action: Action | None = None,
    ) -> bool:
        """Whether somebody may do this with a topic."""
        found = split_node_topic(self.config.network, topic or "")
        if found is None:
            return False
        if action is not Action.PUBLISH:
            return True
        retained = cast(BrokerContext, self.context).retained_messages
        room = topic in retained or len(retained) < RETAINED_MAX
        return room and len(found[0]) == NODE_ID_TEXT_CHARS


class _Bounded:
    """A connection's bytes; whoever sends too much at once, or nothing for long, has hung up.

    Whoever opens with MQTT 5 is told that it is refused: amqtt would hang up without a word.
    """

    def __init__(self, reader: StreamReaderAdapter, refuse: Callable[[], None]) -> None:
        self._reader = reader
        self._refuse = refuse
        self._patience_s = FIRST_S
        self._opened = False
        self._last = b""
        self._over = False

    async def read(self, n: int = -1) -> bytes:
        """The next n bytes. Raises IncompleteReadError, which amqtt takes for the end."""
        if self._over or not 0 <= n <= READ_BYTES_MAX:
            self._over = True
            raise asyncio.IncompleteReadError(b"", n)
        # A packet begins with one byte, for which a client that is here may let us wait.
        patience_s = self._patience_s if n == 1 else FIRST_S
        try:
            async with asyncio.timeout(patience_s):
                data: bytes = await self._reader.read(n)
        except TimeoutError:
            self._over = True
            raise asyncio.IncompleteReadError(b"", n) from None
        if self._last == b"MQTT" and not self._opened:
            self._opened, self._patience_s = True, SILENT_S
            if data == b"\x05":
                self._refuse()
                self._over = True
        self._last = data
        return data

    def feed_eof(self) -> None:
        """The other side has ended."""
        self._reader.feed_eof()
