"""One writer, whatever keeps the data; a write is all of its work or nothing of it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest
import sqlalchemy as sa

from novamesh_coordinator.config import PostgresUrl
from novamesh_coordinator.database import Database
from novamesh_coordinator.postgres import open_postgres
from novamesh_coordinator.sqlite_file import open_sqlite
from novamesh_proto.errors import Code, NovaMeshError
from support.database_places import DatabasePlace

COUNT = sa.text("select count(*) from probes")


async def open_database(place: DatabasePlace) -> Database:
    where = place.where
    if isinstance(where, PostgresUrl):
        return await open_postgres(where)
    return await open_sqlite(where)


def add(connection: sa.Connection) -> str:
    connection.exec_driver_sql("insert into probes select count(*), 0 from probes")
    return threading.current_thread().name


async def test_writes_run_in_one_thread_in_the_order_of_asking(
    place: DatabasePlace,
) -> None:
    database = await open_database(place)
    seen: list[int] = []

    def numbered(number: int) -> Callable[[sa.Connection], str]:
        def work(connection: sa.Connection) -> str:
            seen.append(number)
            return add(connection)

        return work

    threads = await asyncio.gather(*(database.write("add", numbered(n)) for n in range(50)))
    assert seen == list(range(50))
    assert len(set(threads)) == 1
    assert await database.read("count", lambda reader: reader.scalar(COUNT)) == 50
    await database.close()


async def test_work_that_fails_half_way_leaves_nothing(place: DatabasePlace) -> None:
    database = await open_database(place)

    def fail(connection: sa.Connection) -> None:
        add(connection)
        connection.exec_driver_sql("insert into nowhere values (1)")

    with pytest.raises(NovaMeshError) as refused:
        await database.write("add", fail)
    assert refused.value.code is Code.CORRUPT
    assert await database.read("count", lambda reader: reader.scalar(COUNT)) == 0
    await database.write("add", add)
    assert await database.read("count", lambda reader: reader.scalar(COUNT)) == 1
    await database.close()


async def test_close_waits_for_a_write_whose_asker_was_cancelled(place: DatabasePlace) -> None:
    database = await open_database(place)
    begun, go_on = threading.Event(), threading.Event()

    def slow(connection: sa.Connection) -> None:
        begun.set()
        go_on.wait(30)
        add(connection)

    asker = asyncio.create_task(database.write("add", slow))
    await asyncio.to_thread(begun.wait, 30)
    asker.cancel()
    closing = asyncio.create_task(database.close())
    go_on.set()
    await closing
    database = await open_database(place)
    assert await database.read("count", lambda reader: reader.scalar(COUNT)) == 1
    await database.close()
