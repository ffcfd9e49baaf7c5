"""SQLite as the coordinator's database: one file, held by one process at a time.

Rules: what `write` returned from survives kill -9 and power loss (WAL, synchronous=FULL); a lock
beside the file keeps a second process out; whoever only looks changes no byte of the folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import sqlite3
import tempfile
from pathlib import Path
from typing import IO, Any, Final
from urllib.parse import quote

import sqlalchemy as sa

from novamesh_coordinator.database import Database, T, Work
from novamesh_coordinator.database_errors import storage
from novamesh_coordinator.schema import migrate, require_schema
from novamesh_proto.errors import Code, NovaMeshError

REFUSED: Final = ".refused"  # the write-ahead log as a start found it that refused the database
BUSY_TIMEOUT_MS: Final = 5_000


class SqliteFile(Database):
    """One open file; made by `open_sqlite` and `look_at_sqlite`."""

    def __init__(
        self, engine: sa.Engine, lock: IO[str] | contextlib.ExitStack, evidence: Path | None
    ) -> None:
        super().__init__(engine)
        self._lock = lock
        self._evidence = evidence  # the write-ahead log, unless nothing may be changed
        self._writer = engine.connect()

    def _transact(self, doing: str, work: Work[T]) -> T:
        with storage(doing), self._writer.begin():
            return work(self._writer)

    def _look(self, doing: str, work: Work[T]) -> T:
        try:
            return super()._look(doing, work)
        except NovaMeshError as error:
            if error.code is Code.CORRUPT:
                self._require_readable()
            raise

    def _require_readable(self) -> None:
        """SQLite takes what the system cannot read for damage, too; but that may heal."""
        log = self._evidence
        for path in () if log is None else (log.with_name(log.name.removesuffix("-wal")), log):
            try:
                with path.open("rb") as file:
                    while file.read(1 << 20):
                        pass
            except FileNotFoundError:
                continue
            except OSError as error:
                raise NovaMeshError(
                    Code.STORAGE,
                    f"cannot read {path}: {error.strerror}",
                    "mend the coordinator's disk; it goes on by itself then",
                    retry_after_ms=2_000,
                ) from error

    def keep_evidence(self) -> None:
        """SQLite drops what it does not understand of its write-ahead log when we close it."""
        if self._evidence is not None:
            with contextlib.suppress(OSError):  # there is none, or an earlier start kept it
                os.link(self._evidence, f"{self._evidence}{REFUSED}")

    def _close(self) -> None:
        super()._close()
        self._writer.close()
        self._engine.dispose()
        self._lock.close()


async def open_sqlite(path: Path) -> SqliteFile:
    """Open the file of a coordinator, made and migrated where needed.

    Raises:
        NovaMeshError: CONFLICT if another process has it, STORAGE, CORRUPT.
    """
    return await asyncio.to_thread(_open, path)


async def look_at_sqlite(path: Path) -> SqliteFile:
    """Open the file of a coordinator that does not run, so that no byte of its folder changes.

    Raises:
        NovaMeshError: CONFLICT if another process has it, STORAGE, CORRUPT.
    """
    return await asyncio.to_thread(_open_to_look, path)


def _open_to_look(path: Path) -> SqliteFile:
    held = contextlib.ExitStack()
    try:
        held.enter_context(_keep_others_out(path))
        address = _address_to_look(path, held)
        engine = sa.create_engine(
            "sqlite://",
            creator=lambda: sqlite3.connect(address, uri=True, check_same_thread=False),
            poolclass=sa.QueuePool,
        )
        held.callback(engine.dispose)
        with storage("open the database"):
            with engine.connect() as connection:
                require_schema(connection)
            return SqliteFile(engine, held, None)
    except BaseException:
        # Whatever went wrong: neither the lock nor the copy is left behind.
        held.close()
        raise


def _address_to_look(path: Path, held: contextlib.ExitStack) -> str:
    """Where SQLite may read without leaving a trace.

    Whoever reads a write-ahead log writes an index beside it, and whoever closes one that is
    damaged removes it. So it is read as a copy in another folder; without one nothing is written.
    """
    log = path.with_name(path.name + "-wal")
    if not log.exists():
        return f"file:{quote(str(path.absolute()))}?immutable=1"
    try:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="novamesh-check-")))
        shutil.copyfile(log, folder / log.name)
        try:
            os.link(path, folder / path.name)
        except OSError:  # another file system, or the file of another owner
            shutil.copyfile(path, folder / path.name)
    except OSError as error:
        problem = f"cannot copy {path} to look at it: {error.strerror}"
        raise NovaMeshError(
            Code.STORAGE, problem, "name a folder with room for it: TMPDIR=FOLDER"
        ) from error
    return f"file:{quote(str(folder / path.name))}?mode=ro"


def _open(path: Path) -> SqliteFile:
    lock = _take_lock(path.with_name(path.name + ".lock"))
    engine = sa.create_engine(f"sqlite:///{path}")
    sa.event.listen(engine, "connect", _set_pragmas)
    sa.event.listen(engine, "begin", _begin)
    try:
        with storage("open the database"):
            with engine.begin() as connection:
                migrate(connection)
            return SqliteFile(engine, lock, path.with_name(path.name + "-wal"))
    except BaseException:
        # Whatever went wrong: the lock is not left behind.
        engine.dispose()
        lock.close()
        raise


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
    _have_alone(lock, path)
    lock.truncate(0)
    lock.write(f"{os.getpid()}\n")
    lock.flush()
    return lock


def _keep_others_out(path: Path) -> IO[str]:
    """The same lock without a write; where it was never taken there is nobody to keep out."""
    name = path.with_name(path.name + ".lock")
    lock = (name if name.exists() else Path(os.devnull)).open()
    if name.exists():
        _have_alone(lock, name)
    return lock


def _have_alone(lock: IO[str], path: Path) -> None:
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
