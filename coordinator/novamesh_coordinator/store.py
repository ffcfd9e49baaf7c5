"""The event log in a database: what the coordinator writes, and what it asks for again.

Rules: what `commit` returned from is durable; a batch is one transaction; every event carries the
digest of the log up to it, so a flipped bit or a missing row is found when the log is read, and
refused, never repaired. Snapshots only shorten the replay: state = newest snapshot + the events
after it; a snapshot is written when all of the parts that it names are there. Sealed bodies of live
jobs are kept beside the log and go when their job ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from novamesh_coordinator.body_cache import BodyCache
from novamesh_coordinator.config import PostgresUrl
from novamesh_coordinator.core import CoreState
from novamesh_coordinator.database import Database, OutcomeUnknown
from novamesh_coordinator.events import AttemptSettled, JobEnded, Record
from novamesh_coordinator.high_water import HighWater, Remembered
from novamesh_coordinator.log_chain import (
    Mark,
    Row,
    SnapshotLike,
    body_digest,
    make_rows,
    read_row,
    snapshot_digest,
)
from novamesh_coordinator.postgres import Postgres, look_at_postgres, open_postgres
from novamesh_coordinator.schema import BODIES, EVENTS, PARTS, PROBES, SNAPSHOTS, require_schema
from novamesh_coordinator.sqlite_file import look_at_sqlite, open_sqlite
from novamesh_coordinator.stored_log import (
    ROWS_AT_ONCE,
    Found,
    Loaded,
    bodies_of,
    check_older,
    read_after,
    read_end,
    read_newest,
    state_of,
    unnamed_parts,
)
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import JobId, JobState

SNAPSHOTS_KEPT: Final = 2
ASK_S: Final = 0.5  # between two tries to learn what became of a commit
GUARD_S: Final = 0.25

_ADD_EVENTS: Final = sa.insert(EVENTS)
_ADD_BODIES: Final = sa.insert(BODIES)
_ADD_PARTS: Final = sa.insert(PARTS)
_DROP_BODIES: Final = sa.delete(BODIES).where(BODIES.c.job == sa.bindparam("ended"))
_DROP_PARTS: Final = sa.delete(PARTS).where(PARTS.c.digest == sa.bindparam("named"))


@dataclass(frozen=True, slots=True)
class Entry:
    """What one step wants committed: its records, and a new job's sealed body."""

    records: tuple[Record, ...]
    body: tuple[JobId, bytes] | None = None


class Store:
    """One open log; made by `open_store`."""

    unsure = False  # whether it is not known yet what became of a commit

    def __init__(self, database: Database, high_water: HighWater | Remembered) -> None:
        self._database = database
        self._high_water = high_water
        self.mark = Mark()  # of the last committed event
        self.snapshot_seq = 0  # of the newest snapshot
        self._checked = Mark()  # of the newest snapshot that this process has read
        self._ends: tuple[Mark, ...] = ()  # where the log may end; empty until it was read
        self._bodies = BodyCache()
        self._parts: set[bytes] = set()  # digests of parts that are on the disk as they should be
        database.on_return = self._require_end

    async def load(self) -> Loaded:
        """Read snapshot and log, and check every digest on the way.

        Raises:
            NovaMeshError: CORRUPT, saying where; STORAGE.
        """
        # Two threads: whoever checks what is older waits much for the disk and for SHA-256.
        acknowledged = self._high_water.read()
        older = partial(check_older, checked=self._checked, acknowledged=acknowledged)
        newest = partial(read_newest, acknowledged=acknowledged)
        checked, found = await asyncio.gather(
            self._database.read("read the log", older),
            self._database.read("read the log", newest),
            return_exceptions=True,
        )
        try:
            for failed in (checked, found):
                if isinstance(failed, BaseException):
                    raise failed
            assert isinstance(checked, Mark)
            assert isinstance(found, Found)
            if acknowledged.seq > found.mark.seq:
                raise self._high_water.ahead(found.mark)
        except NovaMeshError as error:
            if error.code is Code.CORRUPT:
                self._database.keep_evidence()
            raise
        self._checked, self.mark, self.snapshot_seq = checked, found.mark, found.snapshot_seq
        self._parts, self._ends = set(found.parts), (found.mark,)
        return found.loaded

    async def follow(self) -> tuple[Record, ...]:
        """What another process committed since `load` or the last `follow`; none when it is all.

        Raises:
            NovaMeshError: CORRUPT, STORAGE.
        """
        after = partial(read_after, mark=self.mark)
        records, self.mark = await self._database.read("read the log", after)
        self._ends = (self.mark,)
        self._high_water.write(self.mark)
        self._parts.clear()  # the other one may have dropped them
        return records

    async def require_schema(self) -> None:
        """Before the log of another process is followed.

        Raises:
            NovaMeshError: CONFLICT for other tables than this version's, STORAGE.
        """
        await self._database.read("read the schema", require_schema)

    async def take_turn(self) -> bool:
        """Become the one that writes; False while another process is.

        Raises:
            NovaMeshError: STORAGE; CORRUPT for a schema of a newer version.
        """
        return await self._database.take_turn()

    async def guard(self) -> None:
        """Run for as long as this process is the one that may write.

        Raises:
            NovaMeshError: CONFLICT when another one is.
        """
        while self._database.lost is None:  # noqa: ASYNC110  a thread sets it
            await asyncio.sleep(GUARD_S)
        raise self._database.lost

    async def commit(self, entries: Sequence[Entry]) -> None:
        """Write what some steps decided, in order, in one transaction, durably.

        Raises:
            NovaMeshError: STORAGE; then nothing of it was written. CONFLICT; then another process
                is the one that writes, and knows what was written.
        """
        rows, mark = make_rows((r for entry in entries for r in entry.records), self.mark)
        bodies = [e.body for e in entries if e.body is not None]
        ended = [job for e in entries for r in e.records if (job := _ended(r))]

        def work(writer: sa.Connection) -> None:
            if rows:
                writer.execute(_ADD_EVENTS, [asdict(row) for row in rows])
            if bodies:
                writer.execute(_ADD_BODIES, [_kept(job, body) for job, body in bodies])
            if ended:
                writer.execute(_DROP_BODIES, [{"ended": job} for job in ended])

        self._ends = (self.mark, mark)
        try:
            await self._database.write("write the log", work)
        except OutcomeUnknown:
            if not await self._is_written(mark):
                self._ends = (self.mark,)
                raise
        for job, body in bodies:
            self._bodies.keep(job, body)
        for job in ended:
            self._bodies.drop(job)
        self.mark, self._ends = mark, (mark,)
        self._high_water.write(mark)

    async def _is_written(self, mark: Mark) -> bool:
        """Whether a commit whose answer was lost took place; asked until the database tells.

        Asked as a write, which comes after the lost session has ended: what is not there then will
        not come either.

        Raises:
            NovaMeshError: CONFLICT, CORRUPT.
        """
        self.unsure = True
        try:
            while True:
                try:
                    return await self._database.write("look for the end", read_end) == mark
                except NovaMeshError as error:
                    if error.code is not Code.STORAGE:
                        raise
                await asyncio.sleep(ASK_S)
        finally:
            self.unsure = False

    def _require_end(self, writer: sa.Connection) -> None:
        """After a lost connection: the database still has all that it had."""
        end = read_end(writer)
        if self._ends and end not in self._ends:
            raise self._high_water.ahead(end)

    def has_part(self, digest: bytes) -> bool:
        """Whether this process has seen a part on the disk, whole."""
        return digest in self._parts

    async def save_parts(self, parts: Mapping[bytes, bytes]) -> None:
        """Keep parts of a snapshot to come, by their digests.

        Raises:
            NovaMeshError: STORAGE.
        """

        def work(writer: sa.Connection) -> None:
            # One that a kill left behind may be there, and nobody has looked at it.
            writer.execute(_DROP_PARTS, [{"named": digest} for digest in parts])
            writer.execute(_ADD_PARTS, [{"digest": d, "body": body} for d, body in parts.items()])

        if parts:
            await self._database.write("write a part of a snapshot", work)
            self._parts |= parts.keys()

    async def save_snapshot(self, at: Mark, parts: Sequence[bytes]) -> None:
        """The parts with these digests are the state at a place in the log; older ones go, but one.

        Raises:
            NovaMeshError: STORAGE.
        """
        body = b"".join(parts)
        digest = snapshot_digest(at, body)
        row = {"seq": at.seq, "log_digest": at.digest, "body": body, "digest": digest}
        kept = sa.select(SNAPSHOTS.c.seq).order_by(SNAPSHOTS.c.seq.desc()).limit(SNAPSHOTS_KEPT)
        older = SNAPSHOTS.c.seq.not_in(kept.scalar_subquery())

        def work(writer: sa.Connection) -> None:
            writer.execute(sa.delete(SNAPSHOTS).where(SNAPSHOTS.c.seq == at.seq))
            writer.execute(sa.insert(SNAPSHOTS), row)
            writer.execute(sa.delete(SNAPSHOTS).where(older))

        await self._database.write("write a snapshot", work)
        self.snapshot_seq = at.seq

    async def unnamed_parts(self) -> list[bytes]:
        """Digests of the parts that no snapshot names.

        Raises:
            NovaMeshError: STORAGE.
        """
        return await self._database.read("read the snapshots", unnamed_parts)

    async def drop_parts(self, digests: Sequence[bytes]) -> None:
        """These parts go.

        Raises:
            NovaMeshError: STORAGE.
        """
        self._parts.difference_update(digests)
        names = [{"named": digest} for digest in digests]
        await self._database.write(
            "drop parts of a snapshot", lambda writer: writer.execute(_DROP_PARTS, names)
        )

    async def body(self, job: JobId) -> bytes | None:
        """The sealed job as it was first submitted, while it lives."""
        if (at_hand := self._bodies.get(job)) is not None:
            return at_hand
        found = sa.select(BODIES.c.body).where(BODIES.c.job == job)
        return await self._database.read(
            "read a body", lambda reader: reader.execute(found).scalar_one_or_none()
        )

    async def records_of(self, job: JobId) -> tuple[Record, ...]:
        """All that was decided on a job, in order.

        Raises:
            NovaMeshError: CORRUPT, STORAGE.
        """
        log = sa.select(EVENTS).where(EVENTS.c.job == job).order_by(EVENTS.c.seq).limit(64)
        rows = await self._database.read("read the log", _all(log))
        return tuple(map(read_row, rows))

    async def rows(self) -> AsyncIterator[Row]:
        """Every event from the first on, unchecked, read a part at a time."""
        seq = 0
        while True:
            part = sa.select(EVENTS).where(EVENTS.c.seq > seq).order_by(EVENTS.c.seq)
            rows = await self._database.read("read the log", _all(part.limit(ROWS_AT_ONCE)))
            if not rows:
                return
            for row in rows:
                yield Row(row.seq, row.kind, row.job, row.body, row.digest)
            seq = rows[-1].seq

    async def snapshots(self) -> tuple[SnapshotLike, ...]:
        """The snapshots that are kept, unchecked, oldest first."""
        kept = sa.select(SNAPSHOTS).order_by(SNAPSHOTS.c.seq)
        return tuple(await self._database.read("read the snapshots", _all(kept)))

    async def state_of(self, snapshot: SnapshotLike) -> CoreState:
        """The state that a snapshot's parts are.

        Raises:
            NovaMeshError: CORRUPT, STORAGE.
        """
        return await self._database.read(
            "read a snapshot",
            lambda reader: state_of(snapshot, partial(bodies_of, reader)),
        )

    async def probe(self, now_ms: int) -> None:
        """Write a trifle, to see whether the disk takes it again.

        Raises:
            NovaMeshError: STORAGE.
        """

        def work(writer: sa.Connection) -> None:
            writer.execute(sa.delete(PROBES))
            writer.execute(sa.insert(PROBES), {"id": 1, "at_ms": now_ms})

        await self._database.write("write", work)

    async def close(self) -> None:
        """Close the database and let another process have it."""
        await self._database.close()
        self._high_water.close()


def _all(query: sa.Select[Any]) -> Callable[[sa.Connection], Sequence[Any]]:
    return lambda reader: reader.execute(query).all()


def _kept(job: JobId, body: bytes) -> dict[str, bytes]:
    return {"job": job, "body": body, "digest": body_digest(job, body)}


async def open_store(where: Path | PostgresUrl) -> Store:
    """Open the log of a coordinator as the one that writes, made where there is none.

    Raises:
        NovaMeshError: CONFLICT if another process has it, STORAGE, CORRUPT.
    """
    if isinstance(where, PostgresUrl):
        return Store(await open_postgres(where), Remembered())
    return await _with_mark(await open_sqlite(where), where, look_only=False)


async def open_store_to_look(where: Path | PostgresUrl) -> Store:
    """Open the log of a coordinator that does not run, so that nothing of it changes.

    Raises:
        NovaMeshError: CONFLICT if another process has it, STORAGE, CORRUPT.
    """
    if isinstance(where, PostgresUrl):
        return Store(await look_at_postgres(where), Remembered())
    return await _with_mark(await look_at_sqlite(where), where, look_only=True)


def open_store_to_follow(where: PostgresUrl) -> Store:
    """Open the log of a coordinator that may run; written to once `take_turn` says so."""
    return Store(Postgres(where), Remembered())


async def _with_mark(database: Database, path: Path, *, look_only: bool) -> Store:
    mark = path.with_name(path.name + ".mark")
    try:
        return Store(database, HighWater(mark, look_only=look_only))
    except BaseException:
        # Whatever went wrong: the lock is not left behind.
        await database.close()
        raise


def _ended(record: Record) -> JobId | None:
    """The job that needs its sealed body no more, if a record ends one."""
    if isinstance(record, JobEnded):
        return record.job
    if isinstance(record, AttemptSettled) and record.outcome is JobState.SETTLED:
        return record.job
    return None
