"""Look a coordinator's whole database over while it does not run: `novamesh coordinator check`.

Every event from the first on is bound to the next, what it means is replayed, each snapshot is
compared with the state that it stands for, and the audit looks at jobs, payments and signatures.
Rules: nothing is mended, and no byte of the coordinator's folder changes, nor does a file come or
go; a damaged log ends the check there, everything else is told to its end.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from novamesh_coordinator.audit import Auditor
from novamesh_coordinator.config import PostgresUrl
from novamesh_coordinator.core import Core, PoolIdentity
from novamesh_coordinator.log_chain import (
    Mark,
    RowLike,
    SnapshotLike,
    check_rows,
    check_snapshot,
    corrupt,
)
from novamesh_coordinator.store import Store, open_store_to_look
from novamesh_proto.errors import Code, NovaMeshError

PROBLEMS_MAX: Final = 100


@dataclass(frozen=True, slots=True)
class Report:
    """What was looked at, and what is wrong, in sentences."""

    events: int
    snapshots: int
    jobs: int
    live_jobs: int
    settlements: int
    problems: tuple[str, ...]


class _Reading:
    """One pass over the log."""

    def __init__(self, identity: PoolIdentity, snapshots: tuple[SnapshotLike, ...]) -> None:
        self.core = Core(identity)
        self.auditor = Auditor(identity.key.node_id, identity.network)
        self.problems: list[str] = []
        self.mark = Mark()
        self.snapshots = {snapshot.seq: snapshot for snapshot in snapshots}

    def tell(self, problem: str) -> None:
        """One more, told once; the first PROBLEMS_MAX are kept."""
        if problem not in self.problems and len(self.problems) < PROBLEMS_MAX:
            self.problems.append(problem)

    def take(self, row: RowLike) -> None:
        """The next event.

        Raises:
            NovaMeshError: CORRUPT; nothing after it can be judged.
        """
        (record,), self.mark = check_rows([row], self.mark)
        for problem in self.auditor.take(record):
            self.tell(f"event {row.seq}: {problem}")
        try:
            self.core.apply(record)
        except (AssertionError, KeyError) as error:
            raise corrupt(f"event {row.seq} does not follow from those before it") from error

    async def compare(self, row: RowLike, store: Store) -> None:
        """The snapshot at an event, with the state that the log gives there.

        Raises:
            NovaMeshError: STORAGE.
        """
        snapshot = self.snapshots.pop(row.seq)
        try:
            check_snapshot(snapshot, row)
            state = await store.state_of(snapshot)
        except NovaMeshError as error:
            if error.code is not Code.CORRUPT:
                raise
            self.tell(error.message)
        else:
            if state != self.core.state():
                self.tell(f"the snapshot at event {row.seq} is not the state that the log gives")

    def end(self) -> None:
        """Snapshots that are left stand for nothing."""
        for seq in self.snapshots:
            self.tell(f"there is a snapshot at event {seq}, and no such event")


async def check_database(identity: PoolIdentity, where: Path | PostgresUrl) -> Report:
    """Open a database that nobody uses, and check it; it stays as it is, a file byte for byte.

    Raises:
        NovaMeshError: CONFLICT if a coordinator runs on it, STORAGE, CORRUPT if it cannot be
            opened at all.
    """
    store = await open_store_to_look(where)
    try:
        return await check(identity, store)
    finally:
        await store.close()


async def check(identity: PoolIdentity, store: Store) -> Report:
    """All that a database holds, looked at once.

    Raises:
        NovaMeshError: STORAGE if it cannot be read.
    """
    snapshots = await store.snapshots()
    reading = _Reading(identity, snapshots)
    try:
        await store.load()
    except NovaMeshError as error:
        reading.tell(error.message)
    try:
        async for row in store.rows():
            reading.take(row)
            if row.seq in reading.snapshots:
                await reading.compare(row, store)
        reading.end()
    except NovaMeshError as error:
        reading.tell(error.message)
    auditor = reading.auditor
    return Report(
        events=reading.mark.seq,
        snapshots=len(snapshots),
        jobs=auditor.jobs,
        live_jobs=len(auditor.live()),
        settlements=auditor.settlements,
        problems=tuple(reading.problems),
    )
