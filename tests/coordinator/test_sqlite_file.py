"""A file has one process; whoever looks changes nothing of it; what cannot be read is no damage."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa

from novamesh_coordinator.sqlite_file import look_at_sqlite, open_sqlite
from novamesh_proto.errors import Code, NovaMeshError

COUNT = sa.text("select count(*) from probes")


def add(connection: sa.Connection) -> None:
    connection.exec_driver_sql("insert into probes select count(*), 0 from probes")


async def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.db").write_bytes(b"not a database at all, but long enough to be read as one" * 9)
    with pytest.raises(NovaMeshError) as refused:
        await open_sqlite(tmp_path / "c.db")
    assert refused.value.code is Code.CORRUPT


async def test_a_second_process_is_refused(tmp_path: Path) -> None:
    database = await open_sqlite(tmp_path / "c.db")
    with pytest.raises(NovaMeshError, match=f"process {os.getpid()}") as refused:
        await open_sqlite(tmp_path / "c.db")
    assert refused.value.code is Code.CONFLICT
    await database.close()
    await (await open_sqlite(tmp_path / "c.db")).close()


async def test_only_its_owner_reads_it(tmp_path: Path) -> None:
    await (await open_sqlite(tmp_path / "deep" / "c.db")).close()
    assert (tmp_path / "deep" / "c.db").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "deep").stat().st_mode & 0o777 == 0o700


async def test_whoever_looks_reads_what_is_in_the_log_and_writes_nothing(tmp_path: Path) -> None:
    writing = await open_sqlite(tmp_path / "c.db")
    await writing.write("add", add)
    (tmp_path / "copy").mkdir()
    for name in ("c.db", "c.db-wal"):
        shutil.copy(tmp_path / name, tmp_path / "copy" / name)
    await writing.close()
    looking = await look_at_sqlite(tmp_path / "copy" / "c.db")
    assert await looking.read("count", lambda reader: reader.scalar(COUNT)) == 1
    with pytest.raises(NovaMeshError, match="readonly"):
        await looking.write("add", add)
    looking.keep_evidence()
    await looking.close()
    assert {one.name for one in (tmp_path / "copy").iterdir()} == {"c.db", "c.db-wal"}


async def test_what_cannot_be_read_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = await open_sqlite(tmp_path / "c.db")

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
