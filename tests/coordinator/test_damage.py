"""A flipped bit or a cut, anywhere in the database or its write-ahead log, never passes unnoticed.

Either it is found when the coordinator starts, with a sentence that says what to do, or it hit a
place that means nothing: then all that was acknowledged is read as it was written.
"""

from __future__ import annotations

import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from novamesh_coordinator.store import open_store
from novamesh_coordinator.stored_log import Loaded
from novamesh_proto.errors import Code, NovaMeshError

PLACES = 200
Damage = Callable[[Path, random.Random], None]
FILES = ("c.db", "c.db-wal")

# A log of a while, its newest part only in the write-ahead log; the process dies with all of it.
WRITER = """
import asyncio, os, signal, sqlite3, sys
from pathlib import Path
from novamesh_coordinator.core import Core
from novamesh_coordinator.events import JobAdmitted, MemberJoined
from novamesh_coordinator.snapshotter import Snapshotter
from novamesh_coordinator.store import Entry, open_store
from support.sim.parties import IDENTITY
from support.table import Table

async def main():
    table = Table(open_pool=True)
    client, node = table.client(), table.node()
    for number in range(12):
        table.order(client, node, key=f"job-{number}")
        table.answer(table.assigned(node), chunks=2)
    table.order(client, node, key="live")
    store = await open_store(Path(sys.argv[1]))
    await store.load()
    core = Core(IDENTITY)
    for number, record in enumerate(table.log):
        body = (record.job, os.urandom(900)) if isinstance(record, JobAdmitted) else None
        await store.commit([Entry((record,), body)])
        core.apply(record)
        if number == 20:
            await Snapshotter(store).save(core)
            with sqlite3.connect(sys.argv[1]) as database:
                database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a coordinator that was killed."""
    folder = tmp_path_factory.mktemp("written")
    done = subprocess.run(
        [sys.executable, "-c", WRITER, str(folder / "c.db")],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert all((folder / name).stat().st_size > 8_000 for name in FILES)
    return folder


async def load(folder: Path) -> Loaded | NovaMeshError:
    """What a start finds."""
    try:
        store = await open_store(folder / "c.db")
    except NovaMeshError as error:
        return error
    try:
        return await store.load()
    except NovaMeshError as error:
        return error
    finally:
        await store.close()


async def copy_of(written: Path, folder: Path) -> Path:
    """A copy that may be damaged."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(written, folder)
    return folder


def flip(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def cut(path: Path, rng: random.Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: rng.randrange(len(data))])


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [flip, cut])
async def test_damage_is_found_or_means_nothing(
    written: Path, tmp_path: Path, name: str, damage: Damage
) -> None:
    rng, seen = random.Random(f"{name} {damage.__name__}"), Counter[str]()
    whole = await load(await copy_of(written, tmp_path / "whole"))
    for _ in range(PLACES // 4):
        folder = await copy_of(written, tmp_path / "damaged")
        damage(folder / name, rng)
        loaded = await load(folder)
        if isinstance(loaded, NovaMeshError):
            assert loaded.code is Code.CORRUPT, loaded
            assert "backup" in loaded.hint
            seen["found"] += 1
        else:
            assert loaded == whole
            seen["harmless"] += 1
    # Of a database much is free, or replaced by what the write-ahead log holds.
    least = 0.15 if (damage, name) == (flip, "c.db") else 0.9
    assert seen["found"] >= PLACES // 4 * least, seen


async def test_what_sqlite_would_drop_is_kept(written: Path, tmp_path: Path) -> None:
    folder = await copy_of(written, tmp_path / "damaged")
    wal = folder / "c.db-wal"
    data = bytearray(wal.read_bytes())
    data[len(data) // 2] ^= 1
    wal.write_bytes(data)
    for _ in range(2):
        assert isinstance(await load(folder), NovaMeshError)
        assert (folder / "c.db-wal.refused").read_bytes() == data


@pytest.mark.parametrize(
    "statement",
    [
        "update events set kind = cast(x'ff' as text) where seq = 30",
        "update bodies set body = 'text'",
        "update bodies set job = 'text'",
        "update snapshots set body = 'text'",
        "update snapshot_parts set body = 'text'",
        "update snapshots set log_digest = 'text'",
    ],
)
async def test_another_type_is_damage(written: Path, tmp_path: Path, statement: str) -> None:
    folder = await copy_of(written, tmp_path / "damaged")
    with sqlite3.connect(folder / "c.db") as database:
        database.execute(statement)
    database.close()
    found = await load(folder)
    assert isinstance(found, NovaMeshError)
    assert found.code is Code.CORRUPT
