"""The log as it is read back: the newest snapshot, the events after it, a look at those before.

Rules: every digest is checked on the way; what does not fit is CORRUPT, with the place; only what
one connection sees is compared, so another process may be writing meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import sqlalchemy as sa

from novamesh_coordinator.core import CoreState
from novamesh_coordinator.events import Record
from novamesh_coordinator.log_chain import (
    Mark,
    SnapshotLike,
    body_digest,
    check_rows,
    check_snapshot,
    corrupt,
    follow_links,
)
from novamesh_coordinator.schema import BODIES, EVENTS, PARTS, SNAPSHOTS
from novamesh_coordinator.snapshot_parts import names_of, read_parts

ROWS_AT_ONCE: Final = 20_000  # events
PARTS_AT_ONCE: Final = 256  # parts of a snapshot

_LINKS: Final = sa.select(EVENTS.c.seq, EVENTS.c.kind, EVENTS.c.body, EVENTS.c.digest).order_by(
    EVENTS.c.seq
)

BodiesOf = Callable[[Sequence[bytes]], Iterable[object]]
"""What is kept under digests of parts, in their order."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What is on disk: a snapshot's state, or none yet, and the records after it."""

    state: CoreState | None
    records: tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """What was read, where the log ends, and which snapshot and parts of it are as they should."""

    loaded: Loaded
    mark: Mark
    snapshot_seq: int
    parts: frozenset[bytes]


def read_newest(reader: sa.Connection, acknowledged: Mark) -> Found:
    """The newest snapshot, what came after it, and the sealed bodies.

    Raises:
        NovaMeshError: CORRUPT, saying where.
    """
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
    loaded, mark = check_log(snapshot, rows, partial(bodies_of, reader))
    check_same(rows, acknowledged)
    if snapshot is None:
        return Found(loaded, mark, 0, frozenset())
    return Found(loaded, mark, snapshot.seq, frozenset(names_of(snapshot.body)))


def check_older(reader: sa.Connection, checked: Mark, acknowledged: Mark) -> Mark:
    """What the newest snapshot stands for was not changed either; nothing of it is replayed.

    What was checked before is not read again: a coordinator whose disk failed for a moment must not
    be away for long.

    Raises:
        NovaMeshError: CORRUPT, saying which event.
    """
    last = reader.scalar(sa.select(sa.func.max(SNAPSHOTS.c.seq))) or 0
    mark = checked
    while mark.seq < last:
        part = _LINKS.where(EVENTS.c.seq > mark.seq, EVENTS.c.seq <= last).limit(ROWS_AT_ONCE)
        # The driver's own rows: of a long log there are very many, and each is looked at once.
        driver: Any = reader.execute(part).cursor
        before, mark = mark, follow_links(driver, mark)
        if mark == before:
            raise corrupt(f"event {mark.seq + 1} is missing from the log")
    its = _LINKS.where(EVENTS.c.seq == acknowledged.seq)
    check_same(reader.execute(its).all(), acknowledged)
    return mark


def read_after(reader: sa.Connection, mark: Mark) -> tuple[tuple[Record, ...], Mark]:
    """Some of the records that follow a place in the log, and the place after them.

    Raises:
        NovaMeshError: CORRUPT, saying which event, also if the log has lost that place.
    """
    rest = sa.select(EVENTS).where(EVENTS.c.seq >= mark.seq).order_by(EVENTS.c.seq)
    rows = reader.execute(rest.limit(ROWS_AT_ONCE)).all()
    if not mark.seq:
        return check_rows(rows, mark)
    # Its own event again, to see that it is there: a copy that lagged behind may have taken over.
    if not rows or (rows[0].seq, rows[0].digest) != (mark.seq, mark.digest):
        raise corrupt(f"the log does not hold event {mark.seq} as it was read before")
    return check_rows(rows[1:], mark)


def read_end(reader: sa.Connection) -> Mark:
    """Where the log ends, as its last row says."""
    last = sa.select(EVENTS.c.seq, EVENTS.c.digest).order_by(EVENTS.c.seq.desc()).limit(1)
    row = reader.execute(last).one_or_none()
    return Mark() if row is None else Mark(row.seq, row.digest)


def bodies_of(reader: sa.Connection, digests: Sequence[bytes]) -> Iterator[object]:
    """What is kept under each of these digests; None where there is nothing."""
    for began in range(0, len(digests), PARTS_AT_ONCE):
        some = digests[began : began + PARTS_AT_ONCE]
        kept = sa.select(PARTS.c.digest, PARTS.c.body).where(PARTS.c.digest.in_(some))
        found = {row.digest: row.body for row in reader.execute(kept)}
        yield from map(found.get, some)


def unnamed_parts(reader: sa.Connection) -> list[bytes]:
    """Digests of the parts that no snapshot names."""
    named = {n for body in reader.scalars(sa.select(SNAPSHOTS.c.body)) for n in names_of(body)}
    kept = reader.scalars(sa.select(PARTS.c.digest))
    return [digest for digest in kept if type(digest) is bytes and digest not in named]


def check_log(snapshot: Any, rows: Sequence[Any], bodies: BodiesOf) -> tuple[Loaded, Mark]:
    """What a snapshot and the rows from its own event on say, and the place where they end.

    Raises:
        NovaMeshError: CORRUPT, saying where.
    """
    if snapshot is None:
        records, mark = check_rows(rows, Mark())
        return Loaded(None, records), mark
    place = check_snapshot(snapshot, rows[0] if rows else None)
    records, mark = check_rows(rows[1:], place)
    return Loaded(state_of(snapshot, bodies), records), mark


def state_of(snapshot: SnapshotLike, bodies: BodiesOf) -> CoreState:
    """The state that a snapshot's parts are.

    Raises:
        NovaMeshError: CORRUPT.
    """
    names = names_of(snapshot.body)
    return read_parts(snapshot.seq, names, bodies(names))


def check_same(rows: Sequence[Any], acknowledged: Mark) -> None:
    """The last event that somebody was told of is the one in the log.

    Raises:
        NovaMeshError: CORRUPT.
    """
    at = next((row for row in rows if row.seq == acknowledged.seq), None)
    if at is not None and at.digest != acknowledged.digest:
        raise corrupt(f"event {at.seq} of the log is not the one that was acknowledged")
