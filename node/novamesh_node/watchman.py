"""What follows when an engine fails for good: its device is out, and the node goes on without it.

The slots go, the pool gets a new load and a new descriptor, the owner a line. Rules: jobs on the
device end as they do when any engine fails, with a signed failure; the last device takes the node
with it, with its own error; a device fails once, however many engines on it say so. Whether an
engine has failed is its worker's business.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import structlog

from novamesh_node.crew import Crew, Station
from novamesh_node.descriptor import Advertiser
from novamesh_node.keeper import Keeper
from novamesh_node.notices import Notice, lost
from novamesh_node.worker import Worker

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Watchman:
    """Waits for faults. `tell` prints a line at the node's own terminal."""

    crew: Crew
    keeper: Keeper
    advertiser: Advertiser
    tell: Callable[[Notice], None]

    async def watch(self, station: Station, worker: Worker) -> None:
        """Wait until an engine of a station fails, and take the station out.

        Raises:
            NovaMeshError: its fault, when no other device is left.
        """
        assert worker.fault is not None
        fault = await worker.fault
        if not self.crew.fail(station, fault):
            return
        _log.error("device out", device=station.device.id, code=fault.code.value, why=fault.message)
        slots = self.crew.slots
        if not slots:
            raise fault
        self.advertiser.change(self.crew.facts())  # the ticker sends it
        self.keeper.lend(slots)
        self.tell(lost(station.device.label, fault.message, slots))
