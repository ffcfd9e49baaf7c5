"""Of all processes on one PostgreSQL one writes; losing the connection is losing the right to."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace

import pytest
import sqlalchemy as sa

from novamesh_coordinator import postgres, store
from novamesh_coordinator.config import PostgresUrl
from novamesh_coordinator.events import MemberJoined
from novamesh_coordinator.postgres import Postgres, look_at_postgres, open_postgres
from novamesh_coordinator.store import Entry, open_store, open_store_to_follow
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import MessageId
from support.cutting_proxy import CuttingProxy
from support.database_places import ServerPlace
from support.parties import digest, party
from support.postgres_server import PostgresServer, name_of
from support.waiting import wait_until

SESSIONS = (
    "select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid() "
    "and datname = current_database()"
)
EPOCH = "select epoch from writers"


@pytest.fixture
def there(postgres_server: PostgresServer) -> ServerPlace:
    return ServerPlace(postgres_server, postgres_server.make_database())


@pytest.fixture
def proxy(postgres_server: PostgresServer) -> Iterator[CuttingProxy]:
    with CuttingProxy(postgres_server.port) as passing:
        yield passing


@pytest.fixture
def short_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "_WRITER", postgres._WRITER.replace("timeout=5s", "timeout=1s"))
    monkeypatch.setattr(postgres, "BEAT_S", 0.2)


@pytest.fixture
def no_beat(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody but the test notices anything."""
    monkeypatch.setattr(postgres, "BEAT_S", 3_600.0)


def through(proxy: CuttingProxy, there: ServerPlace, server: PostgresServer) -> PostgresUrl:
    return PostgresUrl(there.where.url.replace(f":{server.port}/", f":{proxy.port}/"))


def joined(number: int) -> Entry:
    who, claim = party(f"{number}").node_id, MessageId(digest(f"claim {number}"))
    return Entry((MemberJoined(who, number, b"", 0, claim, 0),))


def allow(there: ServerPlace, whether: str) -> None:
    """Whether anybody gets a new connection."""
    with there.server.connect() as owner:
        statement = f"alter database {name_of(there.where)} allow_connections {whether}"
        owner.execute(statement)  # type: ignore[call-overload]


def add(writer: sa.Connection) -> None:
    writer.exec_driver_sql("insert into probes select count(*), 0 from probes")


async def refusal(awaitable: object) -> NovaMeshError:
    with pytest.raises(NovaMeshError) as refused:
        await awaitable  # type: ignore[misc]
    return refused.value


async def test_one_writes_and_the_next_one_raises_the_epoch(there: ServerPlace) -> None:
    first = await open_postgres(there.where)
    error = await refusal(open_postgres(there.where))
    assert error.code is Code.CONFLICT
    assert "127.0.0.1" in error.message
    assert "--standby" in error.hint
    await first.write("add", add)
    await first.close()
    second = await open_postgres(there.where)
    assert there.run(EPOCH) == [(2,)]
    await second.close()


@pytest.mark.usefixtures("no_beat")
async def test_a_lost_connection_is_taken_up_again_where_nobody_wrote(there: ServerPlace) -> None:
    database = await open_postgres(there.where)
    await database.read("look", lambda reader: reader.exec_driver_sql(EPOCH).all())
    there.run(SESSIONS)
    error = await refusal(database.write("add", add))
    assert error.code is Code.STORAGE
    assert error.retry_after_ms
    await database.write("add", add)
    assert there.run("select count(*) from probes") == [(1,)]
    assert there.run(EPOCH) == [(1,)]
    seen = await database.read("look", lambda reader: reader.exec_driver_sql(EPOCH).scalar())
    assert seen == 1
    await database.close()


async def test_a_lost_connection_is_noticed_and_taken_up_without_a_write(
    there: ServerPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "BEAT_S", 0.05)
    database = await open_postgres(there.where)
    there.run(SESSIONS)
    sessions = "select count(*) from pg_locks where locktype = 'advisory'"
    await wait_until(lambda: there.run(sessions) == [(1,)])
    await database.write("add", add)
    await database.close()


@pytest.mark.usefixtures("no_beat")
async def test_whoever_lost_its_turn_writes_nothing_and_knows_it(there: ServerPlace) -> None:
    older = await open_store(there.where)
    await older.load()
    await older.commit([joined(1)])
    there.run(SESSIONS)
    newer = await open_store(there.where)
    await newer.load()
    await newer.commit([joined(2)])
    assert (await refusal(older.commit([joined(3)]))).code is Code.STORAGE  # its session is over
    for _ in range(2):
        assert (await refusal(older.commit([joined(3)]))).code is Code.CONFLICT
    assert (await refusal(older.guard())).code is Code.CONFLICT
    assert (await refusal(older.probe(1))).code is Code.CONFLICT
    assert len((await newer.load()).records) == 2
    await older.close()
    await newer.close()


@pytest.mark.usefixtures("no_beat")
async def test_every_transaction_looks_at_the_epoch(there: ServerPlace) -> None:
    database = await open_postgres(there.where)
    there.run("update writers set epoch = epoch + 1")
    assert (await refusal(database.write("add", add))).code is Code.CONFLICT
    assert there.run("select count(*) from probes") == [(0,)]
    await database.close()


@pytest.mark.usefixtures("short_lease")
async def test_the_server_ends_the_turn_of_whoever_says_nothing(
    there: ServerPlace, proxy: CuttingProxy, postgres_server: PostgresServer
) -> None:
    older = await open_postgres(through(proxy, there, postgres_server))
    newer = Postgres(there.where)
    for _ in range(15):  # longer than the lease: beats keep it
        assert not await newer.take_turn()
        await asyncio.sleep(0.1)
    proxy.freeze()
    async with asyncio.timeout(30):
        while not await newer.take_turn():  # noqa: ASYNC110  nobody tells
            await asyncio.sleep(0.1)
    await newer.write("add", add)
    proxy.thaw()
    await wait_until(lambda: older.lost is not None)
    assert (await refusal(older.write("add", add))).code is Code.CONFLICT
    assert there.run("select count(*) from probes") == [(1,)]
    await older.close()
    await newer.close()


@pytest.mark.parametrize("arrives", [True, False])
@pytest.mark.usefixtures("no_beat")
async def test_a_commit_without_an_answer_is_looked_for_before_anybody_is_told(
    there: ServerPlace, proxy: CuttingProxy, postgres_server: PostgresServer, arrives: bool
) -> None:
    writing = await open_store(through(proxy, there, postgres_server))
    await writing.load()
    await writing.commit([joined(1)])
    proxy.cut_at_commit(arrives=arrives)
    if arrives:
        await writing.commit([joined(2)])
    else:
        assert (await refusal(writing.commit([joined(2)]))).code is Code.STORAGE
    assert proxy.cuts == 1
    assert not writing.unsure
    assert writing.mark.seq == 1 + arrives
    await writing.commit([joined(3)])
    assert len((await writing.load()).records) == 2 + arrives
    await writing.close()


@pytest.mark.usefixtures("no_beat")
async def test_a_commit_without_an_answer_waits_for_the_database(
    there: ServerPlace,
    proxy: CuttingProxy,
    postgres_server: PostgresServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(store, "ASK_S", 0.01)
    writing = await open_store(through(proxy, there, postgres_server))
    await writing.load()
    proxy.cut_at_commit(arrives=True)
    allow(there, "false")
    commit = asyncio.create_task(writing.commit([joined(1)]))
    await wait_until(lambda: writing.unsure)
    await asyncio.sleep(0.1)
    assert not commit.done()
    allow(there, "true")
    await commit
    assert writing.mark.seq == 1
    await writing.close()


@pytest.mark.usefixtures("no_beat")
async def test_a_commit_without_an_answer_ends_whoever_lost_its_turn_meanwhile(
    there: ServerPlace, proxy: CuttingProxy, postgres_server: PostgresServer
) -> None:
    older = await open_store(through(proxy, there, postgres_server))
    await older.load()
    await older.commit([joined(1)])
    newer = open_store_to_follow(there.where)
    await newer.load()
    proxy.cut_at_commit(arrives=False)
    commit = asyncio.create_task(older.commit([joined(2)]))
    await wait_until(lambda: proxy.cuts)
    there.run("update writers set epoch = epoch + 1")  # as if the newer one had been quicker
    error = await refusal(commit)
    assert error.code in (Code.CONFLICT, Code.STORAGE)
    assert (await refusal(older.commit([joined(2)]))).code is Code.CONFLICT
    await older.close()
    assert await newer.take_turn()
    assert await newer.follow() == ()
    await newer.commit([joined(3)])
    await newer.close()


@pytest.mark.usefixtures("no_beat")
async def test_a_database_that_lost_what_was_acknowledged_is_refused(there: ServerPlace) -> None:
    writing = await open_store(there.where)
    await writing.load()
    await writing.commit([joined(1)])
    await writing.commit([joined(2)])
    there.run("delete from events where seq = 2")
    there.run(SESSIONS)
    await refusal(writing.commit([joined(3)]))
    error = await refusal(writing.commit([joined(3)]))
    assert error.code is Code.CORRUPT
    assert "event 2 was acknowledged" in error.message
    assert (await refusal(writing.load())).code is Code.CORRUPT
    await writing.close()


async def test_a_server_that_was_away_is_waited_for(there: ServerPlace) -> None:
    database = await open_postgres(there.where)
    there.server.stop()
    assert (await refusal(database.write("add", add))).code is Code.STORAGE
    assert (await refusal(database.read("look", lambda reader: None))).code is Code.STORAGE
    there.server.start()
    await database.write("add", add)
    await database.close()


async def test_a_server_that_cannot_end_sessions_is_refused(
    there: ServerPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "VERSION_LEAST", (99, 0))
    assert (await refusal(open_postgres(there.where))).code is Code.UNSUPPORTED


async def test_whoever_looks_keeps_writers_out_and_writes_nothing(there: ServerPlace) -> None:
    assert (await refusal(look_at_postgres(there.where))).code is Code.CONFLICT  # no tables yet
    await (await open_postgres(there.where)).close()
    looking = await look_at_postgres(there.where)
    assert (await refusal(open_postgres(there.where))).code is Code.CONFLICT
    assert (await refusal(look_at_postgres(there.where))).code is Code.CONFLICT
    assert (await refusal(looking.write("add", add))).code is Code.STORAGE
    await looking.close()
    await (await open_postgres(there.where)).close()


async def test_no_error_tells_the_password(there: ServerPlace) -> None:
    where = replace(there.where, url=there.where.url + "-none", password="hunter2")
    error = await refusal(open_postgres(where))
    assert error.code is Code.STORAGE
    assert "hunter2" not in f"{error} {error.hint} {where}"
