"""What every session of a client works with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from novamesh.absence import Absence
from novamesh.clock import Clock
from novamesh.config import ClientSettings
from novamesh.direct_lines import DirectLines
from novamesh.job_records import JobRecords
from novamesh.job_transport import JobPool
from novamesh.pool import PoolConnection
from novamesh.receipts import Receipts
from novamesh_proto.errors import Code, NovaMeshError


@dataclass(frozen=True, slots=True)
class Desk:
    """What every session of a client works with."""

    pool: PoolConnection
    settings: ClientSettings
    records: JobRecords
    receipts: Receipts
    clock: Clock
    lines: DirectLines | None = None  # to nodes themselves; None: everything is relayed
    mesh: Callable[[], Awaitable[JobPool]] | None = None  # a pool without its coordinator
    alone: bool = False  # whether a coordinator that is away is done without
    absence: Absence | None = None  # of the coordinator; None: it is asked for each answer anew

    async def coordinator_is_away(self) -> bool:
        """Whether it went lately and may not be back, so that nodes are asked at once."""
        return self.alone and self.absence is not None and not await self.absence.over()

    async def without_coordinator(self) -> JobPool:
        """Nodes that are found and asked themselves. Raises UNSUPPORTED where there is no way."""
        if self.mesh is None:
            raise NovaMeshError(Code.UNSUPPORTED, "this client looks for no nodes itself")
        return await self.mesh()
