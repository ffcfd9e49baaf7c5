"""The log as a chain: records become rows, each bound to all before it, and rows become records.

Rules: a row's digest covers the digest before it, its number, kind and body; a snapshot's digest
covers the chain up to it and the state; whatever does not fit is CORRUPT, with the place. Pure:
where rows are kept is the store's business.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from novamesh_coordinator import canonical
from novamesh_coordinator.events import RECORDS, Record
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import JobId

FIRST_DIGEST: Final = hashlib.sha256(b"novamesh/v1/log\0").digest()
_HINT: Final = (
    "nothing was repaired. Keep a copy of the coordinator's folder to find out what happened (the "
    "write-ahead log as it was is in coordinator.db-wal.refused), and restore it from a backup"
)


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in the log: the number of the last event, and the digest of all up to it."""

    seq: int = 0
    digest: bytes = FIRST_DIGEST


@dataclass(frozen=True, slots=True)
class Row:
    """One event as it is kept."""

    seq: int
    kind: str
    job: JobId | None
    body: bytes
    digest: bytes


class RowLike(Protocol):
    """A row as a database gives it back; nothing of it is believed."""

    @property
    def seq(self) -> int:
        """Its number."""
        ...

    @property
    def kind(self) -> str:
        """Name of the record's class."""
        ...

    @property
    def job(self) -> JobId | None:
        """The job it is filed under."""
        ...

    @property
    def body(self) -> bytes:
        """The record, canonical."""
        ...

    @property
    def digest(self) -> bytes:
        """What it is bound by."""
        ...


class SnapshotLike(Protocol):
    """A snapshot as a database gives it back."""

    @property
    def seq(self) -> int:
        """The event after which it was taken."""
        ...

    @property
    def log_digest(self) -> bytes:
        """The chain's digest there."""
        ...

    @property
    def body(self) -> bytes:
        """The digests of the state's parts, end to end."""
        ...

    @property
    def digest(self) -> bytes:
        """What it is bound by."""
        ...


def make_rows(records: Iterable[Record], after: Mark) -> tuple[list[Row], Mark]:
    """Rows for records that follow a place in the log, and the place after them."""
    rows, seq, digest = [], after.seq, after.digest
    for record in records:
        seq += 1
        kind, body = type(record).__name__, canonical.encode(record)
        digest = _link(digest, seq, kind, body)
        rows.append(Row(seq, kind, getattr(record, "job", None), body, digest))
    return rows, Mark(seq, digest)


def check_rows(rows: Sequence[RowLike], after: Mark) -> tuple[tuple[Record, ...], Mark]:
    """The records of rows that follow a place in the log, and the place after them.

    Raises:
        NovaMeshError: CORRUPT, saying which event.
    """
    mark = check_links(rows, after)
    return tuple(map(read_row, rows)), mark


def check_links(rows: Sequence[RowLike], after: Mark) -> Mark:
    """The place after rows that follow a place in the log; what they mean is not looked at.

    Raises:
        NovaMeshError: CORRUPT, saying which event.
    """
    return follow_links(((row.seq, row.kind, row.body, row.digest) for row in rows), after)


def follow_links(links: Iterable[tuple[Any, Any, Any, Any]], after: Mark) -> Mark:
    """The same for (seq, kind, body, digest) as a database's own driver gives them.

    Raises:
        NovaMeshError: CORRUPT, saying which event.
    """
    seq, digest = after.seq, after.digest
    for number, kind, body, claimed in links:
        seq += 1
        if number != seq:
            raise corrupt(f"event {seq} is missing from the log")
        # SQLite keeps whatever type was written, so the type is checked like the value.
        if type(kind) is not str or type(body) is not bytes:
            raise corrupt(f"event {seq} of the log was changed")
        digest = _link(digest, seq, kind, body)
        if digest != claimed:
            raise corrupt(f"event {seq} of the log was changed")
    return Mark(seq, digest)


def check_snapshot(snapshot: SnapshotLike, at: RowLike | None) -> Mark:
    """A snapshot's place in the log; `at` is the log's own event there. Its parts are not read.

    Raises:
        NovaMeshError: CORRUPT.
    """
    seq, digest = snapshot.seq, snapshot.log_digest
    if not isinstance(digest, bytes) or not isinstance(snapshot.body, bytes):
        raise corrupt(f"the snapshot at event {seq} was changed")
    if snapshot_digest(Mark(seq, digest), snapshot.body) != snapshot.digest:
        raise corrupt(f"the snapshot at event {seq} was changed")
    if at is None or at.seq != seq or at.digest != digest:
        raise corrupt(f"the log does not hold event {seq} as the snapshot knew it")
    return Mark(seq, digest)


def snapshot_digest(mark: Mark, parts: bytes) -> bytes:
    """What binds a snapshot, the digests of its parts, to its place in the log."""
    return hashlib.sha256(mark.digest + parts).digest()


def read_row(row: RowLike) -> Record:
    """The record in a row.

    Raises:
        NovaMeshError: CORRUPT.
    """
    cls = RECORDS.get(row.kind)
    if cls is None:
        raise NovaMeshError(
            Code.CORRUPT,
            f"event {row.seq} is a {row.kind}, which this version does not know",
            "run the version of novamesh that wrote it, or a newer one",
        )
    record = canonical.decode(cls, row.body)
    if getattr(record, "job", None) != row.job:
        raise corrupt(f"event {row.seq} of the log is filed under another job")
    return record


def body_digest(job: JobId, body: bytes) -> bytes:
    """What a sealed body is bound to its job by."""
    return hashlib.sha256(b"novamesh/v1/body\0" + job + body).digest()


def corrupt(problem: str) -> NovaMeshError:
    """The error for a log that is not as it was written."""
    return NovaMeshError(Code.CORRUPT, problem, _HINT)


def _link(digest: bytes, seq: int, kind: str, body: bytes) -> bytes:
    return hashlib.sha256(b"%b%d %b\0%b" % (digest, seq, kind.encode(), body)).digest()
