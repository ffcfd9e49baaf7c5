"""The check of a whole database: all of it is read, what is wrong is told, nothing is mended."""

from __future__ import annotations

import hashlib
import sqlite3
from pathlib import Path

import pytest

from novamesh_coordinator.check import Report, check
from novamesh_coordinator.store import Entry, open_store
from support.table import Table


async def write(path: Path) -> Table:
    """A log with a snapshot in its middle."""
    table = Table()
    client, node = table.client(), table.node()
    store = await open_store(path)
    await store.load()
    for key in ("one", "two"):
        table.order(client, node, key=key)
        table.answer(table.assigned(node), chunks=2)
        await store.commit([Entry(tuple(table.log[store.mark.seq :]))])
        await store.save_snapshot(store.mark, table.core.dump())
    await store.close()
    return table


async def look(path: Path, table: Table) -> Report:
    store = await open_store(path)
    try:
        return await check(table.identity, store)
    finally:
        await store.close()


def damage(path: Path, statement: str) -> None:
    with sqlite3.connect(path) as database:
        database.execute(statement)
    database.close()


async def test_a_whole_database_has_no_problems(tmp_path: Path) -> None:
    table = await write(tmp_path / "c.db")
    before = hashlib.sha256((tmp_path / "c.db").read_bytes()).digest()
    report = await look(tmp_path / "c.db", table)
    assert report == Report(len(table.log), 2, 2, 0, 2, ())
    assert hashlib.sha256((tmp_path / "c.db").read_bytes()).digest() == before


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
