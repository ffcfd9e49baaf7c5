"""The check of a whole database: all of it is read, what is wrong is told, nothing is mended."""

from __future__ import annotations

import fcntl
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from novamesh_coordinator.check import Report, check_database
from novamesh_coordinator.config import PostgresUrl
from novamesh_coordinator.core import Core
from novamesh_coordinator.events import AttemptSettled, Record
from novamesh_coordinator.log_chain import Mark, make_rows
from novamesh_coordinator.snapshotter import Snapshotter
from novamesh_coordinator.store import Entry, open_store
from novamesh_proto.errors import Code, NovaMeshError
from support.database_places import ServerPlace
from support.postgres_server import PostgresServer
from support.table import Table


async def write(path: Path | PostgresUrl) -> Table:
    """A log with a snapshot in its middle."""
    table = Table()
    client, node = table.client(), table.node()
    store = await open_store(path)
    await store.load()
    for key in ("one", "two"):
        table.order(client, node, key=key)
        table.answer(table.assigned(node), chunks=2)
        await store.commit([Entry(tuple(table.log[store.mark.seq :]))])
        await Snapshotter(store).save(table.core)
    await store.close()
    return table


async def write_killed(path: Path) -> Table:
    """The same as a coordinator leaves it that was killed: its newest part in the WAL alone."""
    table = await write(path.parent / "alive" / path.name)
    store = await open_store(path.parent / "alive" / path.name)
    await store.load()
    client, node = table.client("late"), table.node("late node")
    table.order(client, node, key="three")
    await store.commit([Entry(tuple(table.log[store.mark.seq :]))])
    path.parent.joinpath("dead").mkdir()
    for name in ("c.db", "c.db-wal", "c.db.mark", "c.db.lock"):
        shutil.copy(path.parent / "alive" / name, path.parent / "dead" / name)
    await store.close()
    return table


async def look(path: Path, table: Table) -> Report:
    """What the owner's command finds; it changes nothing."""
    before = folder(path.parent)
    try:
        return await check_database(table.identity, path)
    finally:
        assert folder(path.parent) == before


def folder(path: Path) -> dict[str, tuple[bytes, int]]:
    """Every byte of it, and when each file was written."""
    return {one.name: (one.read_bytes(), one.stat().st_mtime_ns) for one in path.iterdir()}


def damage(path: Path, statement: str) -> None:
    with sqlite3.connect(path) as database:
        database.execute(statement)
    database.close()


async def test_a_whole_database_has_no_problems(tmp_path: Path) -> None:
    table = await write(tmp_path / "c.db")
    report = await look(tmp_path / "c.db", table)
    assert report == Report(len(table.log), 2, 2, 0, 2, ())


async def test_what_a_kill_left_is_read_to_its_end_and_left_as_it_is(tmp_path: Path) -> None:
    table = await write_killed(tmp_path / "c.db")
    report = await look(tmp_path / "dead" / "c.db", table)
    assert report == Report(len(table.log), 2, 3, 1, 2, ())


def flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :]


@pytest.mark.parametrize("name", ["c.db", "c.db-wal", "c.db.mark"])
@pytest.mark.parametrize("harm", [flip, lambda data: data[: len(data) // 2]])
async def test_a_damaged_database_is_left_as_it_is(
    tmp_path: Path, name: str, harm: Callable[[bytes], bytes]
) -> None:
    table = await write_killed(tmp_path / "c.db")
    harmed = tmp_path / "dead" / name
    harmed.write_bytes(harm(harmed.read_bytes()))
    told = await told_of(tmp_path / "dead" / "c.db", table)
    assert told or (name == "c.db" and harm is flip)  # it may mean nothing


async def told_of(path: Path, table: Table) -> tuple[str, ...]:
    try:
        return (await look(path, table)).problems
    except NovaMeshError as error:
        return (error.message,) if error.code is Code.CORRUPT else ()


async def test_it_does_not_look_while_a_coordinator_runs(tmp_path: Path) -> None:
    table = await write_killed(tmp_path / "c.db")
    with (tmp_path / "dead" / "c.db.lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(NovaMeshError) as refused:
            await look(tmp_path / "dead" / "c.db", table)
    assert refused.value.code is Code.CONFLICT


async def test_another_schema_is_not_brought_up_to_date(tmp_path: Path) -> None:
    table = await write(tmp_path / "c.db")
    damage(tmp_path / "c.db", "update alembic_version set version_num = '0000'")
    with pytest.raises(NovaMeshError, match="schema 0000") as refused:
        await look(tmp_path / "c.db", table)
    assert "start the coordinator once" in refused.value.hint


def pay_more(record: Record) -> Record:
    if not isinstance(record, AttemptSettled):
        return record
    return replace(record, completion_tokens=record.completion_tokens + 1)


async def test_a_log_that_is_whole_and_pays_too_much_is_told(tmp_path: Path) -> None:
    """Somebody who writes the log anew binds its events rightly; what was signed he cannot."""
    table = await write(tmp_path / "c.db")
    rows, _ = make_rows([pay_more(record) for record in table.log], Mark())
    with sqlite3.connect(tmp_path / "c.db") as database:
        database.execute("delete from snapshots")
        for row in rows:
            kept = (row.body, row.digest, row.seq)
            database.execute("update events set body = ?, digest = ? where seq = ?", kept)
    database.close()
    (tmp_path / "c.db.mark").unlink()
    report = await look(tmp_path / "c.db", table)
    assert any("says something else than the log" in problem for problem in report.problems)
    assert any("were paid" in problem for problem in report.problems)


async def test_a_snapshot_of_another_state_is_told(tmp_path: Path) -> None:
    table = await write(tmp_path / "c.db")
    store = await open_store(tmp_path / "c.db")
    await store.load()
    store.snapshot_seq = 0  # as if there were none at this place
    await Snapshotter(store).save(Core(table.identity))
    await store.close()
    report = await look(tmp_path / "c.db", table)
    assert any("is not the state that the log gives" in problem for problem in report.problems)


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("update events set body = body || x'20' where seq = 2", "event 2 of the log was changed"),
        ("delete from events where seq = 3", "event 3 is missing"),
        ("update snapshots set body = x'7b7d'", "snapshot at event"),
        ("delete from events where seq > 9", "acknowledged"),
        ("delete from events", "missing"),
    ],
)
async def test_what_is_wrong_is_told(tmp_path: Path, statement: str, said: str) -> None:
    table = await write(tmp_path / "c.db")
    damage(tmp_path / "c.db", "delete from snapshots where seq > 9") if "> 9" in statement else None
    damage(tmp_path / "c.db", statement)
    report = await look(tmp_path / "c.db", table)
    assert any(said in problem for problem in report.problems), report.problems
    assert len(set(report.problems)) == len(report.problems)


async def test_a_database_on_a_server_is_looked_over(postgres_server: PostgresServer) -> None:
    there = ServerPlace(postgres_server, postgres_server.make_database())
    table = await write(there.where)
    report = await check_database(table.identity, there.where)
    assert report.problems == ()
    assert (report.events, report.snapshots, report.live_jobs) == (len(table.log), 2, 0)
    active = await open_store(there.where)
    with pytest.raises(NovaMeshError, match="is using this database") as refused:
        await check_database(table.identity, there.where)
    assert refused.value.code is Code.CONFLICT
    await active.close()
    there.run("update events set body = body || x'20' where seq = 2")
    before = there.run("select * from events order by seq")
    report = await check_database(table.identity, there.where)
    assert any("event 2 of the log was changed" in problem for problem in report.problems)
    assert there.run("select * from events order by seq") == before
