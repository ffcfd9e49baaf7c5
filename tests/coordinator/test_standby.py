"""Standing by: the log is followed, nothing is written, and with the turn comes all of it."""

from __future__ import annotations

import asyncio

import pytest

from novamesh_coordinator import standby
from novamesh_coordinator.snapshotter import Snapshotter
from novamesh_coordinator.standby import Standby
from novamesh_coordinator.store import Entry, Store, open_store, open_store_to_follow
from novamesh_proto.errors import Code, NovaMeshError
from support.database_places import ServerPlace
from support.postgres_server import PostgresServer
from support.table import Table
from support.waiting import wait_until


@pytest.fixture
def there(postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> ServerPlace:
    monkeypatch.setattr(standby, "POLL_S", 0.01)
    return ServerPlace(postgres_server, postgres_server.make_database())


async def pay(table: Table, store: Store, key: str) -> None:
    """One more job is done and logged."""
    client, node = table.client(key), table.node(f"node of {key}")
    table.order(client, node, key=key)
    table.answer(table.assigned(node))
    await store.commit([Entry((record,)) for record in table.log[store.mark.seq :]])


async def test_the_state_is_there_when_the_turn_comes(there: ServerPlace) -> None:
    table = Table()
    active = await open_store(there.where)
    await active.load()
    await pay(table, active, "one")
    waiting = open_store_to_follow(there.where)
    turn = asyncio.create_task(Standby(table.identity, waiting).wait())
    await wait_until(lambda: waiting.mark == active.mark)
    await pay(table, active, "two")
    await wait_until(lambda: waiting.mark == active.mark)
    await Snapshotter(active).save(table.core)
    await pay(table, active, "three")
    assert not turn.done()
    await active.close()
    core = await asyncio.wait_for(turn, 30)
    assert core is not None
    assert core.state() == table.core.state()
    await pay(table, waiting, "four")
    core.replay(table.log[-4:])
    await Snapshotter(waiting).save(table.core)
    loaded = await waiting.load()
    assert loaded.state == table.core.state()
    assert loaded.records == ()
    await waiting.close()


async def test_a_database_without_tables_is_begun(there: ServerPlace) -> None:
    table = Table()
    waiting = open_store_to_follow(there.where)
    assert await Standby(table.identity, waiting).wait() is None
    await waiting.load()
    await pay(table, waiting, "one")
    await waiting.close()


async def test_tables_of_another_version_are_waited_for(there: ServerPlace) -> None:
    table = Table()
    active = await open_store(there.where)
    await active.load()
    there.run("update alembic_version set version_num = '0002'")
    waiting = open_store_to_follow(there.where)
    turn = asyncio.create_task(Standby(table.identity, waiting).wait())
    await pay(table, active, "one")
    await asyncio.sleep(0.2)
    assert not turn.done()
    assert waiting.mark.seq == 0
    there.run("update alembic_version set version_num = '0003'")
    await wait_until(lambda: waiting.mark == active.mark)
    await active.close()
    assert await asyncio.wait_for(turn, 30) is not None
    await waiting.close()


async def test_a_server_that_is_away_is_waited_for(there: ServerPlace) -> None:
    table = Table()
    active = await open_store(there.where)
    await active.load()
    await pay(table, active, "one")
    waiting = open_store_to_follow(there.where)
    turn = asyncio.create_task(Standby(table.identity, waiting).wait())
    await wait_until(lambda: waiting.mark == active.mark)
    there.server.stop()
    await active.close()
    await asyncio.sleep(0.1)
    assert not turn.done()
    there.server.start()
    core = await asyncio.wait_for(turn, 30)
    assert core is not None
    assert core.state() == table.core.state()
    await waiting.close()


async def test_a_damaged_log_is_not_followed(there: ServerPlace) -> None:
    table = Table()
    active = await open_store(there.where)
    await active.load()
    await pay(table, active, "one")
    there.run("update events set kind = 'MemberBanned' where seq = 1")
    waiting = open_store_to_follow(there.where)
    with pytest.raises(NovaMeshError) as refused:
        await asyncio.wait_for(Standby(table.identity, waiting).wait(), 30)
    assert refused.value.code is Code.CORRUPT
    await waiting.close()
    await active.close()
