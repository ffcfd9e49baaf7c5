"""The event log on disk: the only SQL here (SQLAlchemy Core, SQLite through aiosqlite).

Rules: what `commit` returned from survives kill -9 and power loss (WAL, synchronous=FULL); a batch
is one transaction; every event carries the digest of the log up to it, so a flipped bit or a
missing row is found when the log is read, and refused, never repaired; one process at a time has
the database. Snapshots only shorten the replay: state = newest snapshot + the events after it.
Sealed bodies of live jobs are kept beside the log and go when their job ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Final

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from novamesh_coordinator.body_cache import BodyCache
from novamesh_coordinator.core import CoreState
from novamesh_coordinator.database_errors import storage
from novamesh_coordinator.events import AttemptSettled, JobEnded, Record
from novamesh_coordinator.high_water import HighWater
from novamesh_coordinator.log_chain import (
    Mark,
    Row,
    SnapshotLike,
    body_digest,
    check_links,
    check_rows,
    check_snapshot,
    corrupt,
    make_rows,
    read_row,
    snapshot_digest,
)
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import JobId, JobState

SNAPSHOTS_KEPT: Final = 2
OLDER_ROWS: Final = 20_000  # checked at a time
REFUSED: Final = ".refused"  # the write-ahead log as a start found it that refused the database
BUSY_TIMEOUT_MS: Final = 5_000

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
    """One open database; made by `open_store`."""

    def __init__(
        self,
        engine: AsyncEngine,
        writer: AsyncConnection,
        lock: IO[str],
        high_water: HighWater,
    ) -> None:
        self._engine = engine
        self._writer = writer
        self._one_at_a_time = asyncio.Lock()  # the last snapshot meets the last commits
        self._lock = lock
        self._high_water = high_water
        self.mark = Mark()  # of the last committed event
        self.snapshot_seq = 0  # of the newest snapshot
        self._bodies = BodyCache()

    async def load(self) -> Loaded:
        """Read snapshot and log, and check every digest on the way.

        Raises:
            NovaMeshError: CORRUPT, saying where; STORAGE.
        """
        try:
            return await self._load()
        except NovaMeshError as error:
            if error.code is Code.CORRUPT:
                self._keep_evidence()
            raise

    async def _load(self) -> Loaded:
        acknowledged = self._high_water.read()
        async with storage("read the log"), self._engine.connect() as reader:
            newest = sa.select(_SNAPSHOTS).order_by(_SNAPSHOTS.c.seq.desc()).limit(1)
            snapshot = (await reader.execute(newest)).one_or_none()
            # With a snapshot the log is read from its own event on, to see that the two agree.
            log = sa.select(_EVENTS).order_by(_EVENTS.c.seq)
            log = log.where(_EVENTS.c.seq >= snapshot.seq) if snapshot else log
            rows = (await reader.execute(log)).all()
            await _check_older(reader, snapshot, acknowledged)
            for body in (await reader.execute(sa.select(_BODIES))).all():
                as_written = isinstance(body.job, bytes) and isinstance(body.body, bytes)
                if not as_written or body_digest(body.job, body.body) != body.digest:
                    raise corrupt("the sealed body of a job was changed")
        # Digests and JSON of a long log take a while; the loop must go on meanwhile.
        loaded, self.mark = await asyncio.to_thread(check_log, snapshot, rows)
        self.snapshot_seq = snapshot.seq if snapshot else 0
        _check_same(rows, acknowledged)
        if acknowledged.seq > self.mark.seq:
            raise self._high_water.ahead(self.mark)
        return loaded

    def _keep_evidence(self) -> None:
        """SQLite drops what it does not understand of its write-ahead log when we close it."""
        database = self._engine.url.database or ""
        with contextlib.suppress(OSError):  # there is none, or an earlier start kept it
            os.link(f"{database}-wal", f"{database}-wal{REFUSED}")

    async def commit(self, entries: Sequence[Entry]) -> None:
        """Write what some steps decided, in order, in one transaction, durably.

        Raises:
            NovaMeshError: STORAGE; then nothing of it was written.
        """
        rows, mark = make_rows((r for entry in entries for r in entry.records), self.mark)
        bodies = [e.body for e in entries if e.body is not None]
        ended = [{"ended": job} for e in entries for r in e.records if (job := _ended(r))]
        async with storage("write the log"), self._one_at_a_time, self._writer.begin():
            if rows:
                await self._writer.execute(sa.insert(_EVENTS), [asdict(row) for row in rows])
            if bodies:
                new = [
                    {"job": job, "body": body, "digest": body_digest(job, body)}
                    for job, body in bodies
                ]
                await self._writer.execute(sa.insert(_BODIES), new)
            if ended:
                gone = sa.delete(_BODIES).where(_BODIES.c.job == sa.bindparam("ended"))
                await self._writer.execute(gone, ended)
        for job, body in bodies:
            self._bodies.keep(job, body)
        for row in ended:
            self._bodies.drop(row["ended"])
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
        async with storage("write a snapshot"), self._one_at_a_time, self._writer.begin():
            await self._writer.execute(sa.delete(_SNAPSHOTS).where(_SNAPSHOTS.c.seq == at.seq))
            await self._writer.execute(sa.insert(_SNAPSHOTS), row)
            await self._writer.execute(
                sa.delete(_SNAPSHOTS).where(_SNAPSHOTS.c.seq.not_in(kept.scalar_subquery()))
            )
        self.snapshot_seq = at.seq

    async def body(self, job: JobId) -> bytes | None:
        """The sealed job as it was first submitted, while it lives."""
        if (at_hand := self._bodies.get(job)) is not None:
            return at_hand
        found = sa.select(_BODIES.c.body).where(_BODIES.c.job == job)
        async with storage("read a body"), self._engine.connect() as reader:
            return (await reader.execute(found)).scalar_one_or_none()

    async def records_of(self, job: JobId) -> tuple[Record, ...]:
        """All that was decided on a job, in order.

        Raises:
            NovaMeshError: CORRUPT, STORAGE.
        """
        log = sa.select(_EVENTS).where(_EVENTS.c.job == job).order_by(_EVENTS.c.seq).limit(64)
        async with storage("read the log"), self._engine.connect() as reader:
            rows = (await reader.execute(log)).all()
        return tuple(map(read_row, rows))

    async def rows(self) -> AsyncIterator[Row]:
        """Every event from the first on, unchecked, read a part at a time."""
        seq = 0
        while True:
            part = sa.select(_EVENTS).where(_EVENTS.c.seq > seq).order_by(_EVENTS.c.seq)
            async with storage("read the log"), self._engine.connect() as reader:
                rows = (await reader.execute(part.limit(OLDER_ROWS))).all()
            if not rows:
                return
            for row in rows:
                yield Row(row.seq, row.kind, row.job, row.body, row.digest)
            seq = rows[-1].seq

    async def snapshots(self) -> tuple[SnapshotLike, ...]:
        """The snapshots that are kept, unchecked, oldest first."""
        kept = sa.select(_SNAPSHOTS).order_by(_SNAPSHOTS.c.seq)
        async with storage("read the snapshots"), self._engine.connect() as reader:
            return tuple((await reader.execute(kept)).all())

    async def probe(self, now_ms: int) -> None:
        """Write a trifle, to see whether the disk takes it again.

        Raises:
            NovaMeshError: STORAGE.
        """
        async with storage("write"), self._one_at_a_time, self._writer.begin():
            await self._writer.execute(sa.delete(_PROBES))
            await self._writer.execute(sa.insert(_PROBES), {"id": 1, "at_ms": now_ms})

    async def close(self) -> None:
        """Close the database and let another process have it."""
        await self._writer.close()
        await self._engine.dispose()
        self._high_water.close()
        self._lock.close()


async def _check_older(reader: AsyncConnection, snapshot: Any, acknowledged: Mark) -> None:
    """What the snapshot stands for was not changed either; nothing of it is replayed."""
    mark, last = Mark(), snapshot.seq if snapshot else 0
    while mark.seq < last:
        part = sa.select(_EVENTS).where(_EVENTS.c.seq > mark.seq, _EVENTS.c.seq <= last)
        rows = (await reader.execute(part.order_by(_EVENTS.c.seq).limit(OLDER_ROWS))).all()
        if not rows:
            raise corrupt(f"event {mark.seq + 1} is missing from the log")
        mark = await asyncio.to_thread(check_links, rows, mark)
        _check_same(rows, acknowledged)


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
    """Open the database of a coordinator, made and migrated where needed.

    Raises:
        NovaMeshError: CONFLICT if another process has it, STORAGE, CORRUPT.
    """
    lock = _take_lock(path.with_name(path.name + ".lock"))
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
    sa.event.listen(engine.sync_engine, "connect", _set_pragmas)
    sa.event.listen(engine.sync_engine, "begin", _begin)
    try:
        async with storage("open the database"):
            async with engine.begin() as connection:
                await connection.run_sync(_migrate)
            writer = await engine.connect()
        high_water = HighWater(path.with_name(path.name + ".mark"))
    except BaseException:
        # Whatever went wrong: neither a thread nor the lock is left behind.
        await engine.dispose()
        lock.close()
        raise
    return Store(engine, writer, lock, high_water)


def _take_lock(path: Path) -> IO[str]:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.with_suffix("").touch(mode=0o600)  # what SQLite puts beside it gets the same mode
        path.touch(mode=0o600)
        lock = path.open("a+")
    except OSError as error:
        raise NovaMeshError(
            Code.STORAGE, f"cannot write {path}: {error.strerror}", "check owner and free space"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.seek(0)
        owner = lock.read(32).strip() or "unknown"
        lock.close()
        raise NovaMeshError(
            Code.CONFLICT,
            f"another coordinator (process {owner}) is using {path.with_suffix('')}",
            "stop it first, or serve another --home",
        ) from None
    lock.truncate(0)
    lock.write(f"{os.getpid()}\n")
    lock.flush()
    return lock


def _begin(connection: sa.Connection) -> None:
    """Begin ourselves: the driver would leave what makes tables out of the transaction."""
    connection.exec_driver_sql("BEGIN")


def _set_pragmas(connection: Any, _record: Any) -> None:
    """On every connection; FULL, because what we acknowledge must survive a power cut."""
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _migrate(connection: sa.Connection) -> None:
    config = Config()
    config.set_main_option("script_location", "novamesh_coordinator:migrations")
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise NovaMeshError(
            Code.CORRUPT,
            f"the database has a schema that this version does not know: {error}",
            "run the version of novamesh that wrote it, or a newer one",
        ) from error


def _ended(record: Record) -> JobId | None:
    """The job that needs its sealed body no more, if a record ends one."""
    if isinstance(record, JobEnded):
        return record.job
    if isinstance(record, AttemptSettled) and record.outcome is JobState.SETTLED:
        return record.job
    return None
