"""One process, one writer; a write is all of its work or nothing of it."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from novamesh_coordinator.database import open_database, open_to_look
from novamesh_proto.errors import Code, NovaMeshError

COUNT = sa.text("select count(*) from probes")


def add(connection: sa.Connection) -> str:
    connection.exec_driver_sql("insert into probes select count(*), 0 from probes")
    return threading.current_thread().name


async def test_writes_run_in_one_thread_in_the_order_they_were_asked_for(tmp_path: Path) -> None:
    database = await open_database(tmp_path / "c.db")
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


async def test_work_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    database = await open_database(tmp_path / "c.db")

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


async def test_close_waits_for_a_write_whose_asker_was_cancelled(tmp_path: Path) -> None:
    database = await open_database(tmp_path / "c.db")
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
    database = await open_database(tmp_path / "c.db")
    assert await database.read("count", lambda reader: reader.scalar(COUNT)) == 1
    await database.close()


async def test_a_second_process_is_refused(tmp_path: Path) -> None:
    database = await open_database(tmp_path / "c.db")
    with pytest.raises(NovaMeshError, match=f"process {os.getpid()}") as refused:
        await open_database(tmp_path / "c.db")
    assert refused.value.code is Code.CONFLICT
    await database.close()
    await (await open_database(tmp_path / "c.db")).close()


async def test_only_its_owner_reads_it(tmp_path: Path) -> None:
    await (await open_database(tmp_path / "deep" / "c.db")).close()
    assert (tmp_path / "deep" / "c.db").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "deep").stat().st_mode & 0o777 == 0o700


async def test_whoever_looks_reads_what_is_in_the_log_and_writes_nothing(tmp_path: Path) -> None:
    writing = await open_database(tmp_path / "c.db")
    await writing.write("add", add)
    (tmp_path / "copy").mkdir()
    for name in ("c.db", "c.db-wal"):
        shutil.copy(tmp_path / name, tmp_path / "copy" / name)
    await writing.close()
    looking = await open_to_look(tmp_path / "copy" / "c.db")
    assert await looking.read("count", lambda reader: reader.scalar(COUNT)) == 1
    with pytest.raises(NovaMeshError, match="readonly"):
        await looking.write("add", add)
    looking.keep_evidence()
    await looking.close()
    assert {one.name for one in (tmp_path / "copy").iterdir()} == {"c.db", "c.db-wal"}


async def test_what_cannot_be_read_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = await open_database(tmp_path / "c.db")

    def malformed(reader: sa.Connection) -> None:
        raise sqlite3.DatabaseError("database disk image is malformed")

    with pytest.raises(NovaMeshError, match="malformed") as refused:
        await database.read("read", malformed)
    assert refused.value.code is Code.CORRUPT

    def fail(path: Path, mode: str) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", fail)
        with pytest.raises(NovaMeshError, match="cannot read") as refused:
            await database.read("read", malformed)
    assert refused.value.code is Code.STORAGE
    await database.close()
