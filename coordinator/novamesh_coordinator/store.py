"""The event log on disk: the only SQL of the coordinator (SQLAlchemy Core).

Rules: what `commit` returned from is durable; a batch is one transaction; every event carries the
digest of the log up to it, so a flipped bit or a missing row is found when the log is read, and
refused, never repaired. Snapshots only shorten the replay: state = newest snapshot + the events
after it; a snapshot is written when all of the parts that it names are there. Sealed bodies of live
jobs are kept beside the log and go when their job ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from novamesh_coordinator.body_cache import BodyCache
from novamesh_coordinator.core import CoreState
from novamesh_coordinator.database import Database, open_database, open_to_look
from novamesh_coordinator.events import AttemptSettled, JobEnded, Record
from novamesh_coordinator.high_water import HighWater
from novamesh_coordinator.log_chain import (
    Mark,
    Row,
    SnapshotLike,
    body_digest,
    check_rows,
    check_snapshot,
    corrupt,
    follow_links,
    make_rows,
    read_row,
    snapshot_digest,
)
from novamesh_coordinator.schema import BODIES, EVENTS, PARTS, PROBES, SNAPSHOTS
from novamesh_coordinator.snapshot_parts import names_of, read_parts
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import JobId, JobState

SNAPSHOTS_KEPT: Final = 2
PART_ROWS: Final = 20_000  # events read at a time
PARTS_READ: Final = 256  # parts of a snapshot read at a time

_ADD_EVENTS: Final = sa.insert(EVENTS)
_ADD_BODIES: Final = sa.insert(BODIES)
_ADD_PARTS: Final = sa.insert(PARTS)
_LINKS: Final = sa.select(EVENTS.c.seq, EVENTS.c.kind, EVENTS.c.body, EVENTS.c.digest).order_by(
    EVENTS.c.seq
)
_DROP_BODIES: Final = sa.delete(BODIES).where(BODIES.c.job == sa.bindparam("ended"))
_DROP_PARTS: Final = sa.delete(PARTS).where(PARTS.c.digest == sa.bindparam("named"))


BodiesOf = Callable[[Sequence[bytes]], Iterable[object]]
"""What is kept under digests of parts, in their order."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What one step wants committed: its records, and a new job's sealed body."""

    records: tuple[Record, ...]
    body: tuple[JobId, bytes] | None = None


@dataclass(frozen=True, slots=True)
class Loaded:
    """What is on disk: a snapshot's state, or none yet, and the records after it."""

    state: CoreState | None
    records: tuple[Record, ...]


class Store:
    """One open log; made by `open_store`."""

    def __init__(self, database: Database, high_water: HighWater) -> None:
        self._database = database
        self._high_water = high_water
        self.mark = Mark()  # of the last committed event
        self.snapshot_seq = 0  # of the newest snapshot
        self._checked = Mark()  # of the newest snapshot that this process has read
        self._bodies = BodyCache()
        self._parts: set[bytes] = set()  # digests of parts that are on the disk as they should be

    async def load(self) -> Loaded:
        """Read snapshot and log, and check every digest on the way.

        Raises:
            NovaMeshError: CORRUPT, saying where; STORAGE.
        """
        # Two threads: whoever checks what is older waits much for the disk and for SHA-256.
        checked, found = await asyncio.gather(
            self._database.read("read the log", self._check_older),
            self._database.read("read the log", self._load),
            return_exceptions=True,
        )
        try:
            for failed in (checked, found):
                if isinstance(failed, BaseException):
                    raise failed
        except NovaMeshError as error:
            if error.code is Code.CORRUPT:
                self._database.keep_evidence()
            raise
        assert isinstance(checked, Mark)
        assert not isinstance(found, BaseException)
        self._checked = checked
        loaded, self.mark, self.snapshot_seq, self._parts = found
        return loaded

    def _load(self, reader: sa.Connection) -> tuple[Loaded, Mark, int, set[bytes]]:
        acknowledged = self._high_water.read()
        newest = sa.select(SNAPSHOTS).order_by(SNAPSHOTS.c.seq.desc()).limit(1)
        snapshot = reader.execute(newest).one_or_none()
        # With a snapshot the log is read from its own event on, to see that the two agree.
        log = sa.select(EVENTS).order_by(EVENTS.c.seq)
        log = log.where(EVENTS.c.seq >= snapshot.seq) if snapshot else log
        rows = reader.execute(log).all()
        for body in reader.execute(sa.select(BODIES)):
            as_written = isinstance(body.job, bytes) and isinstance(body.body, bytes)
            if not as_written or body_digest(body.job, body.body) != body.digest:
                raise corrupt("the sealed body of a job was changed")
        loaded, mark = check_log(snapshot, rows, partial(_bodies_of, reader))
        _check_same(rows, acknowledged)
        if acknowledged.seq > mark.seq:
            raise self._high_water.ahead(mark)
        if snapshot is None:
            return loaded, mark, 0, set()
        return loaded, mark, snapshot.seq, set(names_of(snapshot.body))

    def _check_older(self, reader: sa.Connection) -> Mark:
        """What the newest snapshot stands for was not changed either; nothing of it is replayed.

        What this process has checked before is not read again: a coordinator whose disk failed for
        a moment must not be away for long.
        """
        last = reader.scalar(sa.select(sa.func.max(SNAPSHOTS.c.seq))) or 0
        older = _LINKS.where(EVENTS.c.seq > self._checked.seq, EVENTS.c.seq <= last)
        # The driver's own rows: of a long log there are very many, and each is looked at once.
        driver: Any = reader.execute(older).cursor
        mark = follow_links(driver, self._checked)
        if mark.seq < last:
            raise corrupt(f"event {mark.seq + 1} is missing from the log")
        acknowledged = self._high_water.read()
        its = _LINKS.where(EVENTS.c.seq == acknowledged.seq)
        _check_same(reader.execute(its).all(), acknowledged)
        return mark

    async def commit(self, entries: Sequence[Entry]) -> None:
        """Write what some steps decided, in order, in one transaction, durably.

        Raises:
            NovaMeshError: STORAGE; then nothing of it was written.
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

        await self._database.write("write the log", work)
        for job, body in bodies:
            self._bodies.keep(job, body)
        for job in ended:
            self._bodies.drop(job)
        self.mark = mark
        self._high_water.write(mark)

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
        return await self._database.read("read the snapshots", _unnamed)

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
            rows = await self._database.read("read the log", _all(part.limit(PART_ROWS)))
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
            lambda reader: state_of(snapshot, partial(_bodies_of, reader)),
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


def _bodies_of(reader: sa.Connection, digests: Sequence[bytes]) -> Iterator[object]:
    """What is kept under each of these digests; None where there is nothing."""
    for began in range(0, len(digests), PARTS_READ):
        some = digests[began : began + PARTS_READ]
        kept = sa.select(PARTS.c.digest, PARTS.c.body).where(PARTS.c.digest.in_(some))
        found = {row.digest: row.body for row in reader.execute(kept)}
        yield from map(found.get, some)


def _unnamed(reader: sa.Connection) -> list[bytes]:
    named = {n for body in reader.scalars(sa.select(SNAPSHOTS.c.body)) for n in names_of(body)}
    kept = reader.scalars(sa.select(PARTS.c.digest))
    return [digest for digest in kept if type(digest) is bytes and digest not in named]


def _all(query: sa.Select[Any]) -> Callable[[sa.Connection], Sequence[Any]]:
    return lambda reader: reader.execute(query).all()


def _kept(job: JobId, body: bytes) -> dict[str, bytes]:
    return {"job": job, "body": body, "digest": body_digest(job, body)}


def _check_same(rows: Sequence[Any], acknowledged: Mark) -> None:
    """The last event that somebody was told of is the one in the log."""
    at = next((row for row in rows if row.seq == acknowledged.seq), None)
    if at is not None and at.digest != acknowledged.digest:
        raise corrupt(f"event {at.seq} of the log is not the one that was acknowledged")


def check_log(snapshot: Any, rows: Sequence[Any], bodies_of: BodiesOf) -> tuple[Loaded, Mark]:
    """What a snapshot and the rows from its own event on say, and the place where they end.

    Raises:
        NovaMeshError: CORRUPT, saying where.
    """
    if snapshot is None:
        records, mark = check_rows(rows, Mark())
        return Loaded(None, records), mark
    place = check_snapshot(snapshot, rows[0] if rows else None)
    records, mark = check_rows(rows[1:], place)
    return Loaded(state_of(snapshot, bodies_of), records), mark


def state_of(snapshot: SnapshotLike, bodies_of: BodiesOf) -> CoreState:
    """The state that a snapshot's parts are.

    Raises:
        NovaMeshError: CORRUPT.
    """
    names = names_of(snapshot.body)
    return read_parts(snapshot.seq, names, bodies_of(names))


async def open_store(path: Path) -> Store:
    """Open the log of a coordinator, made where there is none.

    Raises:
        NovaMeshError: CONFLICT if another process has it, STORAGE, CORRUPT.
    """
    return await _with_mark(await open_database(path), path, look_only=False)


async def open_store_to_look(path: Path) -> Store:
    """Open the log of a coordinator that does not run, so that no byte of its folder changes.

    Raises:
        NovaMeshError: CONFLICT if another process has it, STORAGE, CORRUPT.
    """
    return await _with_mark(await open_to_look(path), path, look_only=True)


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
