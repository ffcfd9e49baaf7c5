"""What nodes leave at the pool's MQTT broker: one more way by which descriptors come.

Rules: a broker is believed in nothing: what is no descriptor of a node of this pool, on the topic
of that node, is counted and goes no further; what goes on is verified as if it had come by any
other way. A broker that is away is a way that is closed. Nothing is ever written there.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import AsyncGenerator
from typing import Final

from novamesh_broker.connection import Visitor, connected
from novamesh_broker.entrance import Entrance
from novamesh_broker.message import Message, read_descriptor, whose
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import Envelope
from novamesh_proto.names import EVERY_NODE, TOPIC_DESCRIPTOR, node_topic
from novamesh_proto.node_table import Source

ACCOUNT: Final = "client"  # where a password is set and no user is named


class Retained:
    """Descriptors that a broker retains, then each new one; `refused` counts, by code."""

    source = Source.MQTT

    def __init__(self, entrance: Entrance, network: str) -> None:
        self._entrance = entrance
        self._network = network
        self.refused: Counter[Code] = Counter()

    async def descriptors(self) -> AsyncGenerator[Envelope]:
        """As `discovery.Discovery.descriptors`."""
        # A name for this connection only: nobody there need know who looks.
        name = f"{ACCOUNT}-{os.urandom(8).hex()}"
        topics = (node_topic(self._network, EVERY_NODE, TOPIC_DESCRIPTOR),)
        async with (
            connected(self._entrance, Visitor(name, ACCOUNT, topics)) as broker,
            contextlib.aclosing(broker.messages()) as messages,
        ):
            async for message in messages:
                sealed = self._read(message)
                if sealed is not None:
                    yield sealed

    def _read(self, message: Message) -> Envelope | None:
        """The descriptor of a message; None for one that is refused, and where a node has left."""
        try:
            node, kind = whose(message, self._network)
            if kind != TOPIC_DESCRIPTOR:
                raise NovaMeshError(Code.BAD_REQUEST, "nobody asked for this topic")
            return read_descriptor(node, message.payload) if message.payload else None
        except NovaMeshError as error:
            self.refused[error.code] += 1
            return None
