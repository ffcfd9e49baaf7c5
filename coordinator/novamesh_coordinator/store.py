"""The event log on disk: the only SQL of the coordinator (SQLAlchemy Core).

Rules: what `commit` returned from is durable; a batch is one transaction; every event carries the
digest of the log up to it, so a flipped bit or a missing row is found when the log is read, and
refused, never repaired. Snapshots only shorten the replay: state = newest snapshot + the events
after it. Sealed bodies of live jobs are kept beside the log and go when their job ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict, dataclass
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
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import JobId, JobState

SNAPSHOTS_KEPT: Final = 2
PART_ROWS: Final = 20_000  # read at a time

_META: Final = sa.MetaData()
_EVENTS: Final = sa.Table(
    "events",
    _META,
    sa.Column("seq", sa.BigInteger, primary_key=True),
    sa.Column("kind", sa.Text),
    sa.Column("job", sa.LargeBinary),
    sa.Column("body", sa.LargeBinary),
    sa.Column("digest", sa.LargeBinary),
)
_SNAPSHOTS: Final = sa.Table(
    "snapshots",
    _META,
    sa.Column("seq", sa.BigInteger, primary_key=True),
    sa.Column("log_digest", sa.LargeBinary),
    sa.Column("body", sa.LargeBinary),
    sa.Column("digest", sa.LargeBinary),
)
_BODIES: Final = sa.Table(
    "bodies",
    _META,
    sa.Column("job", sa.LargeBinary, primary_key=True),
    sa.Column("body", sa.LargeBinary),
    sa.Column("digest", sa.LargeBinary),
)
_PROBES: Final = sa.Table(
    "probes",
    _META,
    sa.Column("id", sa.BigInteger, primary_key=True),
    sa.Column("at_ms", sa.BigInteger),
)
_ADD_EVENTS: Final = sa.insert(_EVENTS)
_ADD_BODIES: Final = sa.insert(_BODIES)
_LINKS: Final = sa.select(_EVENTS.c.seq, _EVENTS.c.kind, _EVENTS.c.body, _EVENTS.c.digest).order_by(
    _EVENTS.c.seq
)
_DROP_BODIES: Final = sa.delete(_BODIES).where(_BODIES.c.job == sa.bindparam("ended"))


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
        loaded, self.mark, self.snapshot_seq = found
        return loaded

    def _load(self, reader: sa.Connection) -> tuple[Loaded, Mark, int]:
        acknowledged = self._high_water.read()
        newest = sa.select(_SNAPSHOTS).order_by(_SNAPSHOTS.c.seq.desc()).limit(1)
        snapshot = reader.execute(newest).one_or_none()
        # With a snapshot the log is read from its own event on, to see that the two agree.
        log = sa.select(_EVENTS).order_by(_EVENTS.c.seq)
        log = log.where(_EVENTS.c.seq >= snapshot.seq) if snapshot else log
        rows = reader.execute(log).all()
        for body in reader.execute(sa.select(_BODIES)):
            as_written = isinstance(body.job, bytes) and isinstance(body.body, bytes)
            if not as_written or body_digest(body.job, body.body) != body.digest:
                raise corrupt("the sealed body of a job was changed")
        loaded, mark = check_log(snapshot, rows)
        _check_same(rows, acknowledged)
        if acknowledged.seq > mark.seq:
            raise self._high_water.ahead(mark)
        return loaded, mark, snapshot.seq if snapshot else 0

    def _check_older(self, reader: sa.Connection) -> Mark:
        """What the newest snapshot stands for was not changed either; nothing of it is replayed.

        What this process has checked before is not read again: a coordinator whose disk failed for
        a moment must not be away for long.
        """
        last = reader.scalar(sa.select(sa.func.max(_SNAPSHOTS.c.seq))) or 0
        older = _LINKS.where(_EVENTS.c.seq > self._checked.seq, _EVENTS.c.seq <= last)
        # The driver's own rows: of a long log there are very many, and each is looked at once.
        driver: Any = reader.execute(older).cursor
        mark = follow_links(driver, self._checked)
        if mark.seq < last:
            raise corrupt(f"event {mark.seq + 1} is missing from the log")
        acknowledged = self._high_water.read()
        its = _LINKS.where(_EVENTS.c.seq == acknowledged.seq)
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

    async def save_snapshot(self, at: Mark, state: bytes) -> None:
        """Keep the state as it was at a place in the log; older snapshots go, but one.

        Raises:
            NovaMeshError: STORAGE.
        """
        digest = snapshot_digest(at, state)
        row = {"seq": at.seq, "log_digest": at.digest, "body": state, "digest": digest}
        kept = sa.select(_SNAPSHOTS.c.seq).order_by(_SNAPSHOTS.c.seq.desc()).limit(SNAPSHOTS_KEPT)
        older = _SNAPSHOTS.c.seq.not_in(kept.scalar_subquery())

        def work(writer: sa.Connection) -> None:
            writer.execute(sa.delete(_SNAPSHOTS).where(_SNAPSHOTS.c.seq == at.seq))
            writer.execute(sa.insert(_SNAPSHOTS), row)
            writer.execute(sa.delete(_SNAPSHOTS).where(older))

        await self._database.write("write a snapshot", work)
        self.snapshot_seq = at.seq

    async def body(self, job: JobId) -> bytes | None:
        """The sealed job as it was first submitted, while it lives."""
        if (at_hand := self._bodies.get(job)) is not None:
            return at_hand
        found = sa.select(_BODIES.c.body).where(_BODIES.c.job == job)
        return await self._database.read(
            "read a body", lambda reader: reader.execute(found).scalar_one_or_none()
        )

    async def records_of(self, job: JobId) -> tuple[Record, ...]:
        """All that was decided on a job, in order.

        Raises:
            NovaMeshError: CORRUPT, STORAGE.
        """
        log = sa.select(_EVENTS).where(_EVENTS.c.job == job).order_by(_EVENTS.c.seq).limit(64)
        rows = await self._database.read("read the log", _all(log))
        return tuple(map(read_row, rows))

    async def rows(self) -> AsyncIterator[Row]:
        """Every event from the first on, unchecked, read a part at a time."""
        seq = 0
        while True:
            part = sa.select(_EVENTS).where(_EVENTS.c.seq > seq).order_by(_EVENTS.c.seq)
            rows = await self._database.read("read the log", _all(part.limit(PART_ROWS)))
            if not rows:
                return
            for row in rows:
                yield Row(row.seq, row.kind, row.job, row.body, row.digest)
            seq = rows[-1].seq

    async def snapshots(self) -> tuple[SnapshotLike, ...]:
        """The snapshots that are kept, unchecked, oldest first."""
        kept = sa.select(_SNAPSHOTS).order_by(_SNAPSHOTS.c.seq)
        return tuple(await self._database.read("read the snapshots", _all(kept)))

    async def probe(self, now_ms: int) -> None:
        """Write a trifle, to see whether the disk takes it again.

        Raises:
            NovaMeshError: STORAGE.
        """

        def work(writer: sa.Connection) -> None:
            writer.execute(sa.delete(_PROBES))
            writer.execute(sa.insert(_PROBES), {"id": 1, "at_ms": now_ms})

        await self._database.write("write", work)

    async def close(self) -> None:
        """Close the database and let another process have it."""
        await self._database.close()
        self._high_water.close()


def _all(query: sa.Select[Any]) -> Callable[[sa.Connection], Sequence[Any]]:
    return lambda reader: reader.execute(query).all()


def _kept(job: JobId, body: bytes) -> dict[str, bytes]:
    return {"job": job, "body": body, "digest": body_digest(job, body)}


def _check_same(rows: Sequence[Any], acknowledged: Mark) -> None:
    """The last event that somebody was told of is the one in the log."""
    at = next((row for row in rows if row.seq == acknowledged.seq), None)
    if at is not None and at.digest != acknowledged.digest:
        raise corrupt(f"event {at.seq} of the log is not the one that was acknowledged")


def check_log(snapshot: Any, rows: Sequence[Any]) -> tuple[Loaded, Mark]:
    """What a snapshot and the rows from its own event on say, and the place where they end.

    Raises:
        NovaMeshError: CORRUPT, saying where.
    """
    if snapshot is None:
        records, mark = check_rows(rows, Mark())
        return Loaded(None, records), mark
    state, place = check_snapshot(snapshot, rows[0] if rows else None)
    records, mark = check_rows(rows[1:], place)
    return Loaded(state, records), mark


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
