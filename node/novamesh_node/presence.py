"""Presence: the node's descriptor and its last will at the pool's MQTT broker.

Rules: the newest descriptor is kept there, retained, and expires with it; a node that goes in order
takes it away, one that dies leaves a last will, which others take for a hint. The broker is a
convenience: nothing here raises into the node, or waits for the broker longer than LEAVE_S.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from typing import Any, Final

import structlog

from novamesh_broker.connection import Connection, LastWill, Visitor
from novamesh_broker.entrance import Entrance
from novamesh_broker.upkeep import Upkeep
from novamesh_node.clock import Clock
from novamesh_proto import wire
from novamesh_proto.broker import Contact
from novamesh_proto.errors import NovaMeshError
from novamesh_proto.messages import Envelope, NodeDescriptor
from novamesh_proto.names import GONE, HERE, TOPIC_DESCRIPTOR, TOPIC_PRESENCE, node_topic

LEAVE_S: Final = 2.0
LOOK_S: Final = 1.0  # how soon a new descriptor is published
WILL_DELAY_S: Final = 10  # a node that is back by then has not been away

_log = structlog.get_logger()


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
        self._node = node
        self._descriptor_topic = node_topic(network, node, TOPIC_DESCRIPTOR)
        self._presence_topic = node_topic(network, node, TOPIC_PRESENCE)
        self._current = current
        self._clock = clock
        self._upkeep = Upkeep(entrance, lambda: clock.monotonic_ms() / 1000, rng)
        self._leaving = asyncio.Event()
        self._task: asyncio.Task[Any] | None = None

    @property
    def contact(self) -> Contact:
        """Whether the broker is reached."""
        return self._upkeep.contact

    def describe(self) -> str:
        """For the node's status."""
        return self._upkeep.describe()

    def leave(self) -> None:
        """Take the descriptor away and end: within LEAVE_S, at once where there is no broker."""
        self._leaving.set()
        if self._task is not None and not self.contact.reached:
            self._task.cancel()

    async def run(self) -> None:
        """One connection after the other, until `leave`."""
        self._task = asyncio.current_task()
        if not self._leaving.is_set():
            will = LastWill(self._presence_topic, GONE, WILL_DELAY_S)
            visitor = Visitor(client_id=self._node, account=self._node, will=will)
            await self._upkeep.run(visitor, self._stay)

    async def _stay(self, broker: Connection) -> None:
        """Be here, and publish each new descriptor, until the line breaks or we leave."""
        broken = asyncio.create_task(_listen(broker), name="presence-reader")
        leaving = asyncio.create_task(self._leaving.wait(), name="presence-leaving")
        try:
            await self._show_each(broker, broken, leaving)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LEAVE_S / 2):
                    await broker.publish(self._descriptor_topic, b"", retain=True)
        except NovaMeshError:
            if not self._leaving.is_set():  # else nobody waits for the line to be back
                raise
        finally:
            broken.cancel()
            leaving.cancel()

    async def _show_each(
        self, broker: Connection, broken: asyncio.Task[None], leaving: asyncio.Task[Any]
    ) -> None:
        shown: Envelope | None = None
        await broker.publish(self._presence_topic, HERE)
        while not leaving.done():
            newest = self._newest()
            if newest is not None and newest is not shown:
                await self._show(broker, newest)
                shown = newest
            first: set[asyncio.Task[Any]] = {broken, leaving}
            await asyncio.wait(first, timeout=LOOK_S, return_when="FIRST_COMPLETED")
            if broken.done():
                broken.result()

    def _newest(self) -> Envelope | None:
        try:
            return self._current()
        except NovaMeshError as error:  # a full disk heals; the old descriptor still counts
            _log.debug("no descriptor to publish", code=error.code.value)
            return None

    async def _show(self, broker: Connection, newest: Envelope) -> None:
        """Leave a descriptor with the broker, for as long as it is good."""
        head = wire.decode(NodeDescriptor, newest.payload).header
        left_ms = head.expires_at_ms - self._clock.wall_ms()
        life_s = max(1, -(-left_ms // 1000))
        await broker.publish(
            self._descriptor_topic, wire.encode(newest), retain=True, life_s=life_s
        )


async def _listen(broker: Connection) -> None:
    """Nothing is sent to us; raises when the line breaks."""
    async for _ in broker.messages():
        pass
