"""The coordinator's disk: what a store has committed survives its process, and may be slow or full.

Rows, digests and replay are the production store's own; only SQLite is missing. A process that dies
while a commit is under way leaves all of it or nothing of it, and nobody was told which.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from novamesh_coordinator.events import Record
from novamesh_coordinator.log_chain import Row, make_rows, read_row
from novamesh_coordinator.store import Entry, Loaded, Store, check_log
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import JobId
from support.sim.loop import HERE
from support.sim.process import check_alive


@dataclass
class Disk:
    """What is on it, and how it feels."""

    rng: random.Random
    rows: list[Row] = field(default_factory=list)
    bodies: dict[JobId, bytes] = field(default_factory=dict)
    full: bool = False
    write_s: tuple[float, float] = (0.0005, 0.008)
    trap: tuple[str, Callable[[], None]] | None = None
    """A kind of event, and what happens while it is being written for the first time."""

    def check(self) -> None:
        """Refuse a write as a full disk does."""
        if self.full:
            raise NovaMeshError(Code.STORAGE, "the disk is full", "free some space")


class DiskStore(Store):
    """A store on such a disk."""

    def __init__(self, disk: Disk) -> None:
        super().__init__(None, None, None, None)  # type: ignore[arg-type]  # no SQLite
        self._disk = disk

    async def load(self) -> Loaded:
        """All of the log."""
        check_alive()
        loaded, self.mark = check_log(None, self._disk.rows)
        return loaded

    async def commit(self, entries: Sequence[Entry]) -> None:
        """All of it or nothing of it."""
        rows, mark = make_rows((r for entry in entries for r in entry.records), self.mark)
        await self._write(rows, entries)
        self.mark = mark

    async def _write(self, rows: list[Row], entries: Sequence[Entry]) -> None:
        check_alive()
        trap = self._disk.trap
        if trap is not None and any(row.kind == trap[0] for row in rows):
            self._disk.trap = None
            trap[1]()
        try:
            await asyncio.sleep(self._disk.rng.uniform(*self._disk.write_s))
        except asyncio.CancelledError:
            if not HERE.get().alive and not self._disk.full and self._disk.rng.random() < 0.5:
                self._keep(rows, entries)
            raise
        check_alive()
        self._disk.check()
        self._keep(rows, entries)

    def _keep(self, rows: list[Row], entries: Sequence[Entry]) -> None:
        self._disk.rows += rows
        for entry in entries:
            if entry.body is not None:
                self._disk.bodies[entry.body[0]] = entry.body[1]

    async def body(self, job: JobId) -> bytes | None:
        """A sealed job."""
        return self._disk.bodies.get(job)

    async def records_of(self, job: JobId) -> tuple[Record, ...]:
        """All that was decided on a job."""
        return tuple(read_row(row) for row in self._disk.rows if row.job == job)

    async def probe(self, now_ms: int) -> None:
        """Try it."""
        del now_ms
        check_alive()
        self._disk.check()

    async def close(self) -> None:
        """Nothing to close."""
