"""The tables that the store speaks of are those that the migrations make."""

from __future__ import annotations

import sqlalchemy as sa

from novamesh_coordinator.config import PostgresUrl
from novamesh_coordinator.events import MemberJoined
from novamesh_coordinator.schema import EVENTS
from novamesh_coordinator.store import Entry, open_store
from novamesh_coordinator.stored_log import Loaded
from novamesh_proto.messages import MessageId
from support.database_places import DatabasePlace
from support.parties import digest, party


def joined(number: int) -> MemberJoined:
    who, claim = party(f"{number}").node_id, MessageId(digest(f"claim {number}"))
    return MemberJoined(who, number, b"", 0, claim, 0)


async def test_migrations_make_these_tables(place: DatabasePlace) -> None:
    await (await open_store(place.where)).close()
    where = place.where
    url = where.url if isinstance(where, PostgresUrl) else f"sqlite:///{where}"
    engine = sa.create_engine(url)
    found = sa.inspect(engine)
    made = {
        name: [column["name"] for column in found.get_columns(name)]
        for name in found.get_table_names()
    }
    engine.dispose()
    del made["alembic_version"]
    assert made == {
        name: [column.name for column in table.columns]
        for name, table in EVENTS.metadata.tables.items()
    }


async def test_snapshots_of_one_piece_are_dropped_and_the_log_stays(place: DatabasePlace) -> None:
    events = [joined(number) for number in range(9)]
    store = await open_store(place.where)
    await store.commit([Entry(tuple(events))])
    await store.close()
    place.run("drop table snapshot_parts")
    place.run("drop table writers")
    place.run("update alembic_version set version_num = '0001'")
    place.run("insert into snapshots values (7, x'00', x'7b7d', x'00')")
    store = await open_store(place.where)
    assert await store.load() == Loaded(None, tuple(events))
    assert await store.snapshots() == ()
    await store.close()
