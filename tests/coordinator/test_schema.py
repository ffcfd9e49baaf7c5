"""The tables that the store speaks of are those that the migrations make."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from novamesh_coordinator.events import MemberJoined
from novamesh_coordinator.schema import EVENTS
from novamesh_coordinator.store import Entry, Loaded, open_store
from novamesh_proto.messages import MessageId
from support.parties import digest, party


def joined(number: int) -> MemberJoined:
    who, claim = party(f"{number}").node_id, MessageId(digest(f"claim {number}"))
    return MemberJoined(who, number, b"", 0, claim, 0)


async def test_migrations_make_these_tables(tmp_path: Path) -> None:
    await (await open_store(tmp_path / "c.db")).close()
    with sqlite3.connect(tmp_path / "c.db") as database:
        made = {
            name: [column[1] for column in database.execute(f"PRAGMA table_info({name})")]
            for (name,) in database.execute("select name from sqlite_master where type = 'table'")
        }
    database.close()
    del made["alembic_version"]
    assert made == {
        name: [column.name for column in table.columns]
        for name, table in EVENTS.metadata.tables.items()
    }


async def test_snapshots_of_one_piece_are_dropped_and_the_log_stays(tmp_path: Path) -> None:
    path, events = tmp_path / "c.db", [joined(number) for number in range(9)]
    store = await open_store(path)
    await store.commit([Entry(tuple(events))])
    await store.close()
    with sqlite3.connect(path) as database:
        database.execute("drop table snapshot_parts")
        database.execute("update alembic_version set version_num = '0001'")
        database.execute("insert into snapshots values (7, x'00', x'7b7d', x'00')")
    database.close()
    store = await open_store(path)
    assert await store.load() == Loaded(None, tuple(events))
    assert await store.snapshots() == ()
    await store.close()
