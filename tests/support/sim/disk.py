"""The coordinator's disk: what a store has committed survives its process, and may be slow or full.

Rows, snapshots, digests, the mark beside the log and what a start makes of them are the production
store's own; only SQLite is missing. A process that dies while a write is under way leaves all of it
or nothing of it, and nobody was told which.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from novamesh_coordinator.core import CoreState
from novamesh_coordinator.events import (
    AttemptSettled,
    JobAdmitted,
    JobEnded,
    JobsForgotten,
    MemberJoined,
    Record,
)
from novamesh_coordinator.high_water import HighWater
from novamesh_coordinator.log_chain import Mark, Row, SnapshotLike, check_links, make_rows, read_row
from novamesh_coordinator.log_chain import snapshot_digest as bind
from novamesh_coordinator.snapshot_parts import names_of
from novamesh_coordinator.store import SNAPSHOTS_KEPT, Entry, Store
from novamesh_coordinator.stored_log import Loaded, check_log, check_same, state_of
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import Envelope, JobId, JobState
from support.sim.loop import HERE
from support.sim.process import check_alive


@dataclass(frozen=True)
class Snapshot:
    """A state at a place in the log, as it is kept: `body` names its parts."""

    seq: int
    log_digest: bytes
    body: bytes
    digest: bytes


@dataclass
class Disk:
    """What is on it, and how it feels; `folder` holds the mark, a real file."""

    rng: random.Random
    folder: Path
    rows: list[Row] = field(default_factory=list)
    snapshots: list[Snapshot] = field(default_factory=list)
    parts: dict[bytes, bytes] = field(default_factory=dict)
    bodies: dict[JobId, bytes] = field(default_factory=dict)
    known: set[bytes] = field(default_factory=set)
    """What the log speaks of: members, jobs, `ended` and a job, payloads of signed messages."""
    acknowledged: int = 0
    """Events that somebody was told of; the mark must say so, here one sees whether it does."""
    full: bool = False
    write_s: tuple[float, float] = (0.0005, 0.008)
    trap: tuple[str, Callable[[], None]] | None = None
    """A kind of event, and what happens while it is being written for the first time."""

    def high_water(self) -> HighWater:
        """The mark of this disk, opened."""
        return HighWater(self.folder / "coordinator.db.mark")

    def check(self) -> None:
        """Refuse a write as a full disk does."""
        if self.full:
            raise NovaMeshError(Code.STORAGE, "the disk is full", "free some space")

    def keep(self, rows: list[Row], entries: Sequence[Entry]) -> None:
        """Events and sealed bodies are durable from now on."""
        self.rows += rows
        for entry in entries:
            if entry.body is not None:
                self.bodies[entry.body[0]] = entry.body[1]
            for record in entry.records:
                self._learn(record)

    def keep_snapshot(self, snapshot: Snapshot) -> None:
        """The newest ones stay."""
        others = [one for one in self.snapshots if one.seq != snapshot.seq]
        self.snapshots = sorted([*others, snapshot], key=lambda one: one.seq)[-SNAPSHOTS_KEPT:]

    def bodies_of(self, digests: Sequence[bytes]) -> list[object]:
        """Parts of snapshots; None where there is none."""
        return [self.parts.get(digest) for digest in digests]

    def drop_parts(self, digests: Sequence[bytes]) -> None:
        """These go."""
        for digest in digests:
            self.parts.pop(digest, None)

    def older(self, events: int, forged: int = 0) -> Disk:
        """A copy from when it held so many events, gone on with `forged` others since then."""
        rows = self.rows[:events]
        place = Mark(events, rows[-1].digest) if rows else Mark()
        rows += make_rows([JobsForgotten(0, 0)] * forged, place)[0]
        kept = [snapshot for snapshot in self.snapshots if snapshot.seq <= events]
        return Disk(self.rng, self.folder, rows, kept, dict(self.parts), dict(self.bodies))

    def _learn(self, record: Record) -> None:
        match record:
            case MemberJoined():
                self.known.add(record.member)
            case JobAdmitted():
                self.known.add(record.job)
        if isinstance(record, JobEnded) or (
            isinstance(record, AttemptSettled) and record.outcome is JobState.SETTLED
        ):
            self.known.add(b"ended" + record.job)
            self.bodies.pop(record.job, None)
        values = (getattr(record, one.name) for one in fields(record))
        self.known |= {value.payload for value in values if isinstance(value, Envelope)}


class DiskStore(Store):
    """A store on such a disk."""

    def __init__(self, disk: Disk) -> None:
        # Not the production store's: there is no SQLite to hold.
        self._disk = disk
        self._high_water = disk.high_water()
        self.mark = Mark()
        self.snapshot_seq = 0
        self._parts = set()

    async def load(self) -> Loaded:
        """The newest snapshot and what came after it, all of it checked as production does."""
        check_alive()
        disk, acknowledged = self._disk, self._high_water.read()
        snapshot = disk.snapshots[-1] if disk.snapshots else None
        since = snapshot.seq if snapshot else 0
        check_links(disk.rows[:since], Mark())
        rows = disk.rows[max(0, since - 1) :]
        loaded, self.mark = check_log(snapshot, rows, disk.bodies_of)
        self.snapshot_seq = since
        self._parts = set(names_of(snapshot.body)) if snapshot else set()
        check_same(disk.rows, acknowledged)
        if acknowledged.seq > self.mark.seq:
            raise self._high_water.ahead(self.mark)
        return loaded

    async def commit(self, entries: Sequence[Entry]) -> None:
        """All of it or nothing of it."""
        rows, mark = make_rows((r for entry in entries for r in entry.records), self.mark)
        await self._write(lambda: self._disk.keep(rows, entries), {row.kind for row in rows})
        self.mark = mark
        self._disk.acknowledged = mark.seq
        self._high_water.write(mark)

    async def save_parts(self, parts: Mapping[bytes, bytes]) -> None:
        """All of them or none."""
        if parts:
            await self._write(lambda: self._disk.parts.update(parts), {"part"})
            self._parts |= parts.keys()

    async def save_snapshot(self, at: Mark, parts: Sequence[bytes]) -> None:
        """All of it or nothing of it."""
        body = b"".join(parts)
        made = Snapshot(at.seq, at.digest, body, bind(at, body))
        await self._write(lambda: self._disk.keep_snapshot(made), {"snapshot"})
        self.snapshot_seq = at.seq

    async def unnamed_parts(self) -> list[bytes]:
        """Those that no snapshot names."""
        named = {name for one in self._disk.snapshots for name in names_of(one.body)}
        return [name for name in self._disk.parts if name not in named]

    async def drop_parts(self, digests: Sequence[bytes]) -> None:
        """All of them or none."""
        self._parts.difference_update(digests)
        await self._write(lambda: self._disk.drop_parts(digests), {"part dropped"})

    async def state_of(self, snapshot: SnapshotLike) -> CoreState:
        """The state that its parts are."""
        return state_of(snapshot, self._disk.bodies_of)

    async def _write(self, keep: Callable[[], None], kinds: set[str]) -> None:
        check_alive()
        trap = self._disk.trap
        if trap is not None and trap[0] in kinds:
            self._disk.trap = None
            trap[1]()
        try:
            await asyncio.sleep(self._disk.rng.uniform(*self._disk.write_s))
        except asyncio.CancelledError:
            if not HERE.get().alive and not self._disk.full and self._disk.rng.random() < 0.5:
                keep()
            raise
        check_alive()
        self._disk.check()
        keep()

    async def body(self, job: JobId) -> bytes | None:
        """A sealed job."""
        return self._disk.bodies.get(job)

    async def records_of(self, job: JobId) -> tuple[Record, ...]:
        """All that was decided on a job."""
        return tuple(read_row(row) for row in self._disk.rows if row.job == job)

    async def rows(self) -> AsyncIterator[Row]:
        """Every event."""
        for row in self._disk.rows:
            yield row

    async def snapshots(self) -> tuple[Snapshot, ...]:
        """Those that are kept."""
        return tuple(self._disk.snapshots)

    async def probe(self, now_ms: int) -> None:
        """Try it."""
        del now_ms
        check_alive()
        self._disk.check()

    async def close(self) -> None:
        """Let go of the mark."""
        self._high_water.close()
