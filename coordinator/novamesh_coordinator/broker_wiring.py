"""Joins the coordinator to its pool's MQTT broker: the small one inside, and presence at any.

Rule: what is not set costs nothing, not even an import: amqtt is in an extra of its own.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncIterator, Callable, Coroutine

from novamesh_broker.entrance import open_entrance
from novamesh_coordinator.config import CoordinatorConfig, find_broker
from novamesh_coordinator.inputs import ProbeWanted
from novamesh_coordinator.presence import Doors, Presence
from novamesh_coordinator.service import Door
from novamesh_proto.errors import Code, NovaMeshError

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
    """What keeps the table of who is here by a broker; nothing where none is named.

    Raises:
        NovaMeshError: BAD_CONFIG if a file of the broker's cannot be used.
    """
    broker = find_broker(config)
    if broker is None:
        return ()
    doors = Doors(
        admit=lambda node: door.sequencer.core.membership.require(node),
        probe=lambda node: door.sequencer.submit(ProbeWanted(node)),
        refused=door.metrics.count_unfit,
        now_ms=door.clock.now_ms,
        monotonic_s=door.clock.monotonic,
    )
    table = door.table
    presence = Presence(
        open_entrance(broker), door.identity.network, table, doors, random.SystemRandom()
    )

    def count_here() -> int:
        return sum(1 for _ in table.fresh(door.clock.now_ms()))

    door.metrics.watch_broker(count_here, lambda: bool(presence.contact.reached))
    return presence.run, presence.sweep
