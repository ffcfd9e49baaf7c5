"""The database of a coordinator: opened by one process at a time, written by one thread.

Rules: what `write` returned from survives kill -9 and power loss (WAL, synchronous=FULL); writes
run one after the other in the order they were asked for, each a transaction; `close` waits for what
was begun. A plain driver in a thread of its own costs a fraction of an async one, which changes
threads for every statement (docs/adr/0006-one-writer-thread.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, Final, TypeVar
from urllib.parse import quote

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError

from novamesh_coordinator.database_errors import storage
from novamesh_proto.errors import Code, NovaMeshError

REFUSED: Final = ".refused"  # the write-ahead log as a start found it that refused the database
BUSY_TIMEOUT_MS: Final = 5_000
MIGRATING: Final = threading.Lock()
"""Alembic keeps its context in a global: one at a time."""

T = TypeVar("T")
Work = Callable[[sa.Connection], T]


class Database:
    """One open database; made by `open_database`."""

    def __init__(
        self, engine: sa.Engine, lock: IO[str] | contextlib.ExitStack, evidence: Path | None
    ) -> None:
        self._engine = engine
        self._lock = lock
        self._evidence = evidence  # the write-ahead log, unless nothing may be changed
        self._writer = engine.connect()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="database-writer")

    async def write(self, doing: str, work: Work[T]) -> T:
        """Run `work` in the writer's thread, as one transaction.

        Raises:
            NovaMeshError: STORAGE or CORRUPT; then nothing of it was written.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._transact, doing, work)

    def _transact(self, doing: str, work: Work[T]) -> T:
        with storage(doing), self._writer.begin():
            return work(self._writer)

    async def read(self, doing: str, work: Work[T]) -> T:
        """Run `work` in some thread, on a connection of its own.

        Raises:
            NovaMeshError: STORAGE or CORRUPT.
        """
        return await asyncio.to_thread(self._look, doing, work)

    def _look(self, doing: str, work: Work[T]) -> T:
        try:
            with storage(doing), self._engine.connect() as reader:
                return work(reader)
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

    async def close(self) -> None:
        """Let another process have it."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._thread.shutdown()
        self._writer.close()
        self._engine.dispose()
        self._lock.close()


async def open_database(path: Path) -> Database:
    """Open the database of a coordinator, made and migrated where needed.

    Raises:
        NovaMeshError: CONFLICT if another process has it, STORAGE, CORRUPT.
    """
    return await asyncio.to_thread(_open, path)


async def open_to_look(path: Path) -> Database:
    """Open the database of a coordinator that does not run, so that no byte of its folder changes.

    Raises:
        NovaMeshError: CONFLICT if another process has it, STORAGE, CORRUPT.
    """
    return await asyncio.to_thread(_open_to_look, path)


def _open_to_look(path: Path) -> Database:
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
                _require_schema(connection)
            return Database(engine, held, None)
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


def _open(path: Path) -> Database:
    lock = _take_lock(path.with_name(path.name + ".lock"))
    engine = sa.create_engine(f"sqlite:///{path}")
    sa.event.listen(engine, "connect", _set_pragmas)
    sa.event.listen(engine, "begin", _begin)
    try:
        with storage("open the database"):
            with MIGRATING, engine.begin() as connection:
                _migrate(connection)
            return Database(engine, lock, path.with_name(path.name + "-wal"))
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


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", "novamesh_coordinator:migrations")
    return config


def _require_schema(connection: sa.Connection) -> None:
    """Whoever only looks does not migrate either."""
    found = MigrationContext.configure(connection).get_current_revision()
    if found != ScriptDirectory.from_config(_config()).get_current_head():
        raise NovaMeshError(
            Code.CONFLICT,
            f"the database has the schema {found}, which is not the one of this version",
            "start the coordinator once, and it is brought up to date; or run the version of "
            "novamesh that wrote it",
        )


def _migrate(connection: sa.Connection) -> None:
    config = _config()
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise NovaMeshError(
            Code.CORRUPT,
            f"the database has a schema that this version does not know: {error}",
            "run the version of novamesh that wrote it, or a newer one",
        ) from error
