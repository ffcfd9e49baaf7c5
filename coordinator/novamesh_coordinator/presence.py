"""Presence: what nodes leave at the pool's MQTT broker, taken into the table of who is here.

Rules: a broker is believed in nothing. A descriptor counts for what its node signed, and only on
the topic of that node; a last will, which anybody with an account may publish, makes us ask the
node itself and changes nothing. Size is looked at first, then who may speak, then the signature;
what is refused is counted by reason.
"""

from __future__ import annotations

import os
import random
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from novamesh_broker.connection import Connection, Visitor
from novamesh_broker.entrance import Entrance
from novamesh_broker.message import Message, read_descriptor, whose
from novamesh_broker.upkeep import Upkeep
from novamesh_proto.broker import Contact
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.limits import POOL_NODES_MAX
from novamesh_proto.messages import NodeId
from novamesh_proto.names import (
    EVERY_NODE,
    GONE,
    HERE,
    TOPIC_DESCRIPTOR,
    TOPIC_PRESENCE,
    node_topic,
)
from novamesh_proto.node_table import NodeTable, Source

ACCOUNT: Final = "coordinator"  # where a password is set and no user is named
PROBE_EVERY_S: Final = 5.0  # of one node, however often its will comes


@dataclass(frozen=True, slots=True)
class Doors:
    """What presence reaches of the coordinator.

    `admit` raises NovaMeshError for whom the pool does not know; `renewed` is told of what is newer
    than all that was known of a node; `probe` asks a node whether it still listens; `refused`
    counts by error code.
    """

    admit: Callable[[NodeId], None]
    renewed: Callable[[NodeId], Awaitable[object]]
    probe: Callable[[NodeId], Awaitable[object]]
    refused: Callable[[str], None]
    now_ms: Callable[[], int]
    monotonic_s: Callable[[], float]


class Presence:
    """Fills the table until it is cancelled."""

    def __init__(
        self, entrance: Entrance, network: str, table: NodeTable, doors: Doors, rng: random.Random
    ) -> None:
        self._network = network
        self._table = table
        self._doors = doors
        self._upkeep = Upkeep(entrance, doors.monotonic_s, rng)
        self._probed: OrderedDict[NodeId, float] = OrderedDict()

    @property
    def contact(self) -> Contact:
        """Whether the broker is reached."""
        return self._upkeep.contact

    async def run(self) -> None:
        """One connection after the other."""
        kinds = (TOPIC_DESCRIPTOR, TOPIC_PRESENCE)
        topics = tuple(node_topic(self._network, EVERY_NODE, kind) for kind in kinds)
        visitor = Visitor(f"{ACCOUNT}-{os.urandom(8).hex()}", ACCOUNT, topics)
        await self._upkeep.run(visitor, self._listen)

    async def take(self, message: Message) -> None:
        """Take one message, or count why not."""
        try:
            node, kind = whose(message, self._network)
            self._doors.admit(node)
            payload = message.payload
            if kind == TOPIC_DESCRIPTOR and payload:
                sealed = read_descriptor(node, payload)
                if self._table.take(sealed, Source.MQTT, self._doors.now_ms()):
                    await self._doors.renewed(node)
            elif kind == TOPIC_DESCRIPTOR or (payload == GONE and not message.retained):
                await self._ask(node)
            elif payload != HERE:
                raise NovaMeshError(Code.BAD_REQUEST, "this is neither a birth nor a last will")
        except NovaMeshError as error:
            self._doors.refused(error.code.value)

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

    async def _listen(self, broker: Connection) -> None:
        """Take what comes until the line breaks."""
        async for message in broker.messages():
            await self.take(message)
