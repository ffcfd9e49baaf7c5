"""Joins the coordinator to its pool's MQTT broker: the small one inside, and presence at any.

Rules: what is not set costs nothing, not even an import: amqtt is in an extra of its own. What a
broker brings of an attached node reaches the core as what the node says itself: as an input.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Final

from novamesh_broker.entrance import open_entrance
from novamesh_coordinator.config import CoordinatorConfig, find_broker
from novamesh_coordinator.inputs import DescriptorRenewed, ProbeWanted
from novamesh_coordinator.presence import Doors, Presence
from novamesh_coordinator.service import Door
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import NodeId
from novamesh_proto.node_table import Source

SWEEP_S: Final = 10.0

Loop = Callable[[], Coroutine[object, object, None]]


@contextlib.asynccontextmanager
async def small_broker(config: CoordinatorConfig, network: str) -> AsyncIterator[None]:
    """The embedded broker while inside, if the configuration wants it.

    Raises:
        NovaMeshError: UNSUPPORTED if its library is missing, CONFLICT if its port is taken.
    """
    if not config.embedded_broker:
        yield
        return
    try:
        from novamesh_coordinator.embedded_broker import run_broker
    except ImportError as error:
        raise NovaMeshError(
            Code.UNSUPPORTED, f"there is no embedded broker here: {error.name} is missing",
            "pip install 'novamesh[broker]'",
        ) from error  # fmt: skip
    async with run_broker(config.broker_listen, network):
        yield


def presence_loops(door: Door, config: CoordinatorConfig) -> tuple[Loop, ...]:
    """What keeps the table of who is here: swept, and filled by a broker where one is named.

    Raises:
        NovaMeshError: BAD_CONFIG if a file of the broker's cannot be used.
    """
    table = door.table

    async def sweep_table() -> None:
        """Forget, from time to time, whose descriptor nobody would take any more."""
        while True:
            await asyncio.sleep(SWEEP_S)
            table.forget(door.clock.now_ms())

    async def renew(node: NodeId) -> None:
        """The core ranks by what was said last, not by what came down the node's stream."""
        session = door.sequencer.core.registry.sessions.get(node)
        newest = table.get(node, door.clock.now_ms())
        if session is not None and newest is not None:
            await door.sequencer.submit(DescriptorRenewed(node, session.session, newest))

    broker = find_broker(config)
    if broker is None:
        return (sweep_table,)
    doors = Doors(
        admit=lambda node: door.sequencer.core.membership.require(node),
        renewed=renew,
        probe=lambda node: door.sequencer.submit(ProbeWanted(node)),
        refused=door.metrics.count_unfit,
        now_ms=door.clock.now_ms,
        monotonic_s=door.clock.monotonic,
    )
    presence = Presence(
        open_entrance(broker), door.identity.network, table, doors, random.SystemRandom()
    )

    def count_here() -> int:
        return sum(Source.MQTT in entry.sources for entry in table.fresh(door.clock.now_ms()))

    door.metrics.watch_broker(count_here, lambda: bool(presence.contact.reached))
    return presence.run, sweep_table
