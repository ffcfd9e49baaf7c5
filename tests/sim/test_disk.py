"""The simulated disk says what the production store says, of a whole log and of a damaged one."""

from __future__ import annotations

import asyncio
import random
import shutil
from pathlib import Path

import pytest

from novamesh_coordinator.core import Core
from novamesh_coordinator.events import MemberBanned, MemberJoined
from novamesh_coordinator.snapshotter import Snapshotter
from novamesh_coordinator.store import Entry, Store, open_store
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import MessageId
from support.parties import digest, party
from support.sim.disk import Disk, DiskStore
from support.sim.loop import VirtualLoop
from support.sim.pool import IDENTITY
from support.sim.process import Process

BEFORE, AFTER = 7, 5


def _joined(number: int) -> Entry:
    claim = MessageId(digest(f"claim {number}"))
    return Entry((MemberJoined(party(f"{number}").node_id, number, b"", 0, claim, 0),))


def _banned(number: int) -> Entry:
    order = MessageId(digest(f"order {number}"))
    return Entry((MemberBanned(party(f"{number}").node_id, number, "why", order, 0),))


async def _fill(store: Store) -> None:
    await store.load()
    await store.commit([_joined(number) for number in range(BEFORE)])
    await Snapshotter(store).save(Core(IDENTITY))


async def _add(store: Store) -> None:
    await store.load()
    await store.commit([_joined(BEFORE + number) for number in range(AFTER)])


async def _say(store: Store) -> list[object]:
    try:
        loaded: object = await store.load()
    except NovaMeshError as error:
        return [error.code, error.message, error.hint]
    rows = [row async for row in store.rows()]
    snapshots = [(s.seq, s.log_digest, s.body, s.digest) for s in await store.snapshots()]
    return [loaded, store.mark, store.snapshot_seq, rows, snapshots]


class Real:
    """A production store's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    async def open(self) -> Store:
        return await open_store(self.folder / "coordinator.db")

    def copy(self) -> None:
        shutil.copy(self.folder / "coordinator.db", self.folder / "older.db")

    def put_back(self) -> None:
        shutil.copy(self.folder / "older.db", self.folder / "coordinator.db")


class Simulated:
    """A simulated disk."""

    def __init__(self, folder: Path) -> None:
        self.disk = Disk(random.Random(0), folder)

    async def open(self) -> Store:
        return DiskStore(self.disk)

    def copy(self) -> None:
        self.older = self.disk.older(len(self.disk.rows))

    def put_back(self) -> None:
        self.disk = self.older


async def _story(place: Real | Simulated, *, forged: bool) -> list[object]:
    """Filled, copied, gone on with; the copy is put back, and perhaps goes another way."""
    said: list[object] = []
    for work in (_fill, _add, None):
        store = await place.open()
        said.append(await work(store) if work else await _say(store))
        await store.close()
        if work is _fill:
            place.copy()
    place.put_back()
    if forged:
        await _go_another_way(place)
    store = await place.open()
    said.append(await _say(store))
    await store.close()
    return said


async def _go_another_way(place: Real | Simulated) -> None:
    """As somebody does who removes the mark for a start, and puts it back."""
    folder = place.folder if isinstance(place, Real) else place.disk.folder
    mark = folder / "coordinator.db.mark"
    kept = mark.read_bytes()
    mark.unlink()
    store = await place.open()
    await store.load()
    await store.commit([_banned(number) for number in range(AFTER)])
    await store.close()
    mark.write_bytes(kept)


@pytest.mark.parametrize("forged", [False, True])
async def test_both_disks_tell_the_same(forged: bool, tmp_path: Path) -> None:
    told: list[list[object]] = []
    for kind in (Real, Simulated):
        folder = tmp_path / kind.__name__
        folder.mkdir()
        told.append(await _story(kind(folder), forged=forged))
    real, simulated = (str(each).replace(str(tmp_path), "") for each in told)
    assert simulated.replace("/Simulated", "/Real") == real
    assert Code.CORRUPT in str(told[0][-1])
    assert "was acknowledged" in real


def test_a_full_disk_keeps_nothing_and_a_dying_process_all_or_nothing(tmp_path: Path) -> None:
    disk, loop = Disk(random.Random(1), tmp_path), VirtualLoop()
    kept: set[int] = set()

    async def live() -> None:
        store = DiskStore(disk)
        disk.full = True
        with pytest.raises(NovaMeshError, match="full"):
            await store.commit([_joined(0)])
        assert not disk.rows
        disk.full = False
        for number in range(12):
            process, before = Process("pool", loop), len(disk.rows)
            await store.load()
            writing = process.spawn(store.commit([_joined(number), _joined(number + 100)]))
            await asyncio.sleep(0)
            await process.kill()
            assert writing.cancelled()
            kept.add(len(disk.rows) - before)
        await store.close()

    loop.run_until_complete(live())
    loop.close()
    assert kept == {0, 2}
    assert disk.acknowledged == 0  # whoever asked has heard nothing
