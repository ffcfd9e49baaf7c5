"""PostgreSQL as the coordinator's database: of all processes on it one writes, and it knows that.

The right to write is a session-level advisory lock on the writer's own connection: whoever loses
the connection has lost the lock. The server itself ends a session that says nothing for LEASE_S, so
a process that stands still, or was cut off, does not keep the others waiting. Whoever takes the
lock raises the epoch, and every transaction looks, under a row lock, whether the epoch is still its
own: one that wakes up late writes nothing, and is told so by `lost`.

Rules: synchronous_commit, so what `write` returned from survives the server's death; a lost
connection is taken up again only with the lock and the same epoch, after which nobody else can have
written; the lock also proves that the lost session, and so its last COMMIT, is over
(docs/adr/0010-postgresql-and-one-sequencer.md). Connections go to the server itself: a pooler in
between that shares sessions would share the lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from typing import Final

import sqlalchemy as sa
import structlog
from sqlalchemy.exc import DBAPIError

from novamesh_coordinator.config import PostgresUrl
from novamesh_coordinator.database import Database, OutcomeUnknown, T, Work
from novamesh_coordinator.database_errors import storage
from novamesh_coordinator.schema import WRITERS, migrate, require_schema
from novamesh_proto.errors import Code, NovaMeshError

LOCK: Final = int.from_bytes(b"novamesh", "big")  # advisory locks are of one database
LEASE_S: Final = 5
BEAT_S: Final = 1.0
VERSION_LEAST: Final = (14, 0)  # the first that ends sessions which say nothing

_NETWORK: Final = {
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,  # ms
    "application_name": "novamesh coordinator",
    "client_encoding": "utf8",  # whatever the database was made with: a C locale gives bytes
}
# The server's own view of a session: how long it waits for us, and what it does before it answers.
_WRITER: Final = (
    f"-c idle_session_timeout={LEASE_S}s -c idle_in_transaction_session_timeout={LEASE_S}s "
    "-c tcp_keepalives_idle=5 -c tcp_keepalives_interval=2 -c tcp_keepalives_count=3 "
    "-c tcp_user_timeout=10000 -c lock_timeout=10s -c statement_timeout=0 "
    "-c synchronous_commit=on -c default_transaction_read_only=off"
)
_EPOCH: Final = sa.select(WRITERS.c.epoch).where(WRITERS.c.id == 1)
_NEXT_EPOCH: Final = (
    sa.update(WRITERS)
    .where(WRITERS.c.id == 1)
    .values(epoch=WRITERS.c.epoch + 1)
    .returning(WRITERS.c.epoch)
)
_TRY_LOCK: Final = sa.select(sa.func.pg_try_advisory_lock(LOCK))
_HOLDER: Final = sa.text(
    "select coalesce(host(a.client_addr), 'its own machine') from pg_locks l join pg_stat_activity "
    "a using (pid) where l.locktype = 'advisory' and l.granted and l.objsubid = 1 and "
    "l.classid = :high and l.objid = :low and l.database = "
    "(select oid from pg_database where datname = current_database())"
).bindparams(high=LOCK >> 32, low=LOCK & 0xFFFFFFFF)

_log = structlog.get_logger()


class Postgres(Database):
    """One database on a server; reads at once, writes once it has its turn."""

    on_server = True

    def __init__(self, where: PostgresUrl) -> None:
        """Connects to nothing yet."""
        super().__init__(_readers(where))
        url = _with_password(where)
        arguments = {**_NETWORK, "options": _WRITER}
        self._writers = sa.create_engine(url, poolclass=sa.NullPool, connect_args=arguments)
        self._writer: sa.Connection | None = None
        self._epoch: int | None = None  # None until it is our turn
        self._closing = threading.Event()
        self._heart = threading.Thread(target=self._beat_on, name="database-beat", daemon=True)

    async def take_turn(self) -> bool:
        """Become the one that writes, with the tables up to date; False while another is.

        Raises:
            NovaMeshError: STORAGE; CORRUPT for a schema of a newer version, UNSUPPORTED for a
                server that is too old.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._take_turn)

    def _take_turn(self) -> bool:
        with storage("ask for the right to write", server=True):
            writer = self._writer or self._connect()
            with self._dropping_what_is_lost(writer):
                with writer.begin():
                    if not writer.scalar(_TRY_LOCK):
                        return False
                with writer.begin():
                    migrate(writer)
                    self._epoch = writer.scalar(_NEXT_EPOCH)
        self._heart.start()
        _log.info("this coordinator is the one that writes", epoch=self._epoch)
        return True

    def holder(self, reader: sa.Connection) -> str:
        """Where the one that writes is connected from."""
        return reader.scalar(_HOLDER) or "nowhere"

    def _transact(self, doing: str, work: Work[T]) -> T:
        with storage(doing, server=True):
            writer = self._require_writer()
            with self._dropping_what_is_lost(writer):
                transaction = writer.begin()
                try:
                    # The row stays locked until the end: a later epoch waits for this transaction.
                    self._require_epoch(writer.scalar(_EPOCH.with_for_update(read=True)))
                    result = work(writer)
                except BaseException:  # whatever ends the work, a cancellation too, undoes it
                    with contextlib.suppress(DBAPIError):
                        transaction.rollback()
                    raise
                _commit(transaction, doing)
                return result

    def _require_writer(self) -> sa.Connection:
        """The connection with the right to write, taken up again where it was lost."""
        if self.lost is not None:
            raise self.lost
        if self._writer is not None:
            return self._writer
        writer = self._connect()
        with self._dropping_what_is_lost(writer):
            try:
                with writer.begin():
                    alone = writer.scalar(_TRY_LOCK)
                    self._require_epoch(writer.scalar(_EPOCH))
                    if not alone:  # the server has not ended our lost session yet
                        raise NovaMeshError(
                            Code.STORAGE, "the right to write is not back yet", "", 1_000
                        )
                    self.on_return(writer)
            except BaseException:  # nobody knows what state it is in
                self._drop(writer)
                raise
        _log.info("the database is back")
        return writer

    def _require_epoch(self, epoch: int | None) -> None:
        if epoch != self._epoch or epoch is None:
            self.lost = NovaMeshError(
                Code.CONFLICT,
                "another coordinator has become the one that writes",
                "this one has ended; start it again to stand by: "
                "novamesh coordinator serve --standby",
            )
            raise self.lost

    def _connect(self) -> sa.Connection:
        writer = self._writers.connect()
        if (writer.dialect.server_version_info or ()) < VERSION_LEAST:
            writer.close()
            raise NovaMeshError(
                Code.UNSUPPORTED, "this PostgreSQL is too old", f"{VERSION_LEAST[0]} is the oldest"
            )
        self._writer = writer
        return writer

    @contextlib.contextmanager
    def _dropping_what_is_lost(self, writer: sa.Connection) -> Iterator[None]:
        """A session that is over is not used again: the next one would not have the lock."""
        try:
            yield
        finally:
            if writer.invalidated:
                _log.warning("the connection to the database is lost")
                self._drop(writer)

    def _drop(self, writer: sa.Connection) -> None:
        self._writer = None
        with contextlib.suppress(DBAPIError):
            writer.close()

    def _beat_on(self) -> None:
        """Say something often enough, and notice soon that it is somebody else's turn."""
        while not self._closing.wait(BEAT_S):
            with contextlib.suppress(NovaMeshError, RuntimeError):  # closed meanwhile
                self._thread.submit(self._beat).result()

    def _beat(self) -> None:
        with storage("keep the right to write", server=True):
            writer = self._require_writer()
            with self._dropping_what_is_lost(writer), writer.begin():
                self._require_epoch(writer.scalar(_EPOCH))

    def _close(self) -> None:
        self._closing.set()
        super()._close()
        if self._heart.ident is not None:
            self._heart.join()
        if self._writer is not None:
            self._drop(self._writer)
        self._writers.dispose()
        self._engine.dispose()


def _commit(transaction: sa.RootTransaction, doing: str) -> None:
    try:
        transaction.commit()
    except DBAPIError as error:
        if not error.connection_invalidated:
            raise
        raise OutcomeUnknown(
            Code.STORAGE, f"cannot {doing}: the connection was lost", "", 2_000
        ) from error


async def open_postgres(where: PostgresUrl) -> Postgres:
    """Open a database as the one that writes, migrated where needed.

    Raises:
        NovaMeshError: CONFLICT if another process is that one, STORAGE, CORRUPT, UNSUPPORTED.
    """
    database = Postgres(where)
    try:
        if await database.take_turn():
            return database
        holder = await database.read("ask who writes", database.holder)
        raise NovaMeshError(
            Code.CONFLICT,
            f"another coordinator, connected from {holder}, is using this database",
            "stop it first, or wait for its end: novamesh coordinator serve --standby",
        )
    except BaseException:
        # Whatever went wrong: no connection is left behind.
        await database.close()
        raise


async def look_at_postgres(where: PostgresUrl) -> Postgres:
    """Open the database of coordinators that do not run; nothing of it can be changed.

    Raises:
        NovaMeshError: CONFLICT if one runs or has another schema, STORAGE.
    """
    database = _Looking(where)
    try:
        if await database.take_turn():
            return database
        raise NovaMeshError(
            Code.CONFLICT,
            "a coordinator is using this database",
            "stop it first, and those that stand by",
        )
    except BaseException:
        # Whatever went wrong: no connection is left behind.
        await database.close()
        raise


class _Looking(Postgres):
    """One that keeps writers out, and does not write itself."""

    def __init__(self, where: PostgresUrl) -> None:
        super().__init__(where)
        self._writers = self._engine

    def _take_turn(self) -> bool:
        with storage("open the database", server=True):
            writer = self._connect()
            with writer.begin():
                require_schema(writer)
                return bool(writer.scalar(_TRY_LOCK))

    def _require_writer(self) -> sa.Connection:
        assert self._writer is not None, "who looks has had its turn"
        return self._writer


def _readers(where: PostgresUrl) -> sa.Engine:
    """Connections that see one state from their first statement on, and change nothing."""
    return sa.create_engine(
        _with_password(where),
        connect_args={**_NETWORK, "options": "-c default_transaction_read_only=on"},
        pool_pre_ping=True,
        isolation_level="REPEATABLE READ",
    )


def _with_password(where: PostgresUrl) -> sa.URL:
    url = sa.make_url(where.url)
    return url.set(password=where.password) if where.password else url
