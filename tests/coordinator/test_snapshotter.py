"""Snapshots on the way: when they are due, in small writes, and never one without its parts."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

import pytest

from novamesh_coordinator import snapshotter
from novamesh_coordinator.core import Core
from novamesh_coordinator.events import MemberBanned, MemberJoined
from novamesh_coordinator.log_chain import Mark
from novamesh_coordinator.snapshot_parts import cut, names_of
from novamesh_coordinator.snapshotter import SNAPSHOT_S, Snapshotter
from novamesh_coordinator.store import Entry, Store, open_store
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import MessageId, NodeId
from support.parties import digest
from support.sim.parties import IDENTITY
from support.waiting import wait_until


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshotter, "SNAPSHOT_EVERY", 100)
    monkeypatch.setattr(snapshotter, "RETRY_S", 0.05)
    monkeypatch.setattr(snapshotter, "WRITE_BYTES", 4_000)


class Pool:
    """A store and the core that its log gives."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.core = Core(IDENTITY)
        self.snapshotter = Snapshotter(store)
        self.members = 0

    async def grow(self, count: int) -> None:
        """Somebody joins, some times."""
        new = range(self.members, self.members + count)
        self.members += count
        records = [
            MemberJoined(
                NodeId(digest(f"{n}")), n, b"", 0, MessageId(digest(f"claim {n}")), 1 << 60
            )
            for n in new
        ]
        await self.store.commit([Entry(tuple(records))])
        self.core.replay(records)

    async def check(self) -> None:
        """What is on the disk is what the core is, and no part is left that nobody names."""
        loaded = await self.store.load()
        again = Core(IDENTITY, loaded.state)
        again.replay(loaded.records)
        assert again.state() == self.core.state()
        assert await self.store.unnamed_parts() == []


@contextlib.asynccontextmanager
async def pool(path: Path) -> AsyncIterator[Pool]:
    store = await open_store(path)
    await store.load()
    try:
        yield Pool(store)
    finally:
        await store.close()


@contextlib.asynccontextmanager
async def running(made: Pool) -> AsyncIterator[None]:
    task = asyncio.create_task(made.snapshotter.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def written(made: Pool, seq: int) -> None:
    await wait_until(lambda: made.store.snapshot_seq == seq)


def parts_in(path: Path) -> int:
    with sqlite3.connect(path) as database:
        (count,) = database.execute("select count(*) from snapshot_parts").fetchone()
    database.close()
    return int(count)


async def test_a_snapshot_is_written_when_it_is_due(tmp_path: Path) -> None:
    async with pool(tmp_path / "c.db") as made, running(made):
        await made.grow(99)
        made.snapshotter.offer(made.core, 0.0)
        await asyncio.sleep(0.05)
        assert made.store.snapshot_seq == 0
        await made.grow(1)
        made.snapshotter.offer(made.core, 0.0)
        await made.grow(10)  # the state is that of the moment in which it was offered
        await written(made, 100)
        assert len((await made.store.load()).records) == 10
        await made.check()


async def test_one_at_a_time_and_the_next_writes_what_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bytes_written: list[int] = []
    usual = Store.save_parts

    async def save(self: Store, parts: Mapping[bytes, bytes]) -> None:
        bytes_written.append(sum(map(len, parts.values())))
        await usual(self, parts)

    monkeypatch.setattr(Store, "save_parts", save)
    async with pool(tmp_path / "c.db") as made, running(made):
        await made.grow(3_000)
        made.snapshotter.offer(made.core, 0.0)
        await made.grow(100)
        made.snapshotter.offer(made.core, 0.0)  # the first one is under way
        await written(made, 3_000)
        first = sum(bytes_written)
        assert max(bytes_written) < 60_000 < first
        bytes_written.clear()
        await made.snapshotter.save(made.core)
        assert made.store.snapshot_seq == 3_100
        await made.check()
        bytes_written.clear()
        await made.snapshotter.save(made.core)
        assert bytes_written == []


async def test_parts_that_nobody_names_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshotter, "DROPPED_AT_ONCE", 3)
    async with pool(tmp_path / "c.db") as made:
        await made.store.save_parts({digest(f"left by a kill {n}"): b"torn" for n in range(10)})
        for _ in range(4):
            await made.grow(50)
            await made.snapshotter.save(made.core)
        await made.check()
        names = {name for one in await made.store.snapshots() for name in names_of(one.body)}
        assert parts_in(tmp_path / "c.db") == len(names)
        assert len(await made.store.snapshots()) == 2


async def test_a_part_left_by_a_kill_is_not_believed(tmp_path: Path) -> None:
    async with pool(tmp_path / "c.db") as made:
        await made.grow(10)
        await made.snapshotter.save(made.core)
    with sqlite3.connect(tmp_path / "c.db") as database:
        database.execute("delete from snapshots")
        database.execute("update snapshot_parts set body = x'00'")
    database.close()
    async with pool(tmp_path / "c.db") as again:
        again.core.replay((await again.store.load()).records)
        await again.snapshotter.save(again.core)
        await again.check()


async def test_a_disk_that_refuses_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals = iter(["save_parts", "save_snapshot", "drop_parts", "drop_parts"])
    wanted = next(refusals)

    def wrap(name: str) -> None:
        usual = getattr(Store, name)

        async def call(self: Store, *given: object) -> object:
            nonlocal wanted
            if wanted == name:
                wanted = next(refusals, "")
                raise NovaMeshError(Code.STORAGE, "the disk is full")
            return await usual(self, *given)

        monkeypatch.setattr(Store, name, call)

    for name in ("save_parts", "save_snapshot", "drop_parts"):
        wrap(name)
    async with pool(tmp_path / "c.db") as made, running(made):
        async with asyncio.timeout(20):
            while wanted:
                await made.grow(100)
                made.snapshotter.offer(made.core, 0.0)
                await asyncio.sleep(0.06)
        await made.grow(100)
        await asyncio.sleep(0.2)
        await made.snapshotter.save(made.core)
        await made.check()


async def test_parts_of_snapshots_that_failed_do_not_pile_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(self: Store, at: Mark, parts: Sequence[bytes]) -> None:
        raise NovaMeshError(Code.STORAGE, "the disk is full")

    monkeypatch.setattr(Store, "save_snapshot", refuse)
    async with pool(tmp_path / "c.db") as made:
        seen = []
        for _ in range(6):
            await made.grow(100)
            with pytest.raises(NovaMeshError, match="full"):
                await made.snapshotter.save(made.core)
            seen.append(parts_in(tmp_path / "c.db"))
        runs = len(list(cut(made.core.state())))
        assert seen[-1] == runs


async def test_a_state_that_comes_back_is_written_again(tmp_path: Path) -> None:
    """Its parts were there once, and went."""
    async with pool(tmp_path / "c.db") as made:
        who = NodeId(digest("somebody"))
        for number, reason in enumerate(("spam", "", "", "", "spam")):
            order = MessageId(digest(f"order {number}"))
            ban = MemberBanned(who, number, reason, order, number)  # the order is soon forgotten
            await made.store.commit([Entry((ban,))])
            made.core.apply(ban)
            await made.snapshotter.save(made.core)
            await made.check()


async def test_a_quiet_pool_has_a_snapshot_now_and_then(tmp_path: Path) -> None:
    async with pool(tmp_path / "c.db") as made, running(made):
        made.snapshotter.offer(made.core, 5.0)
        await made.grow(1)
        for now_s in (5.0, 5.0 + SNAPSHOT_S - 1):
            made.snapshotter.offer(made.core, now_s)
            await asyncio.sleep(0)
            assert made.snapshotter._cut is None
        made.snapshotter.offer(made.core, 5.0 + SNAPSHOT_S)
        await written(made, 1)
        await wait_until(lambda: made.snapshotter._cut is None)
        made.snapshotter.offer(made.core, 5.0 + 3 * SNAPSHOT_S)  # nothing is new
        assert made.snapshotter._cut is None


async def test_the_last_one_does_not_wait_and_waits_its_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshotter, "PAUSE_S", 3.0)
    async with pool(tmp_path / "c.db") as made, running(made):
        await made.grow(1_000)
        made.snapshotter.offer(made.core, 0.0)
        await asyncio.sleep(0.01)
        await made.grow(1)
        async with asyncio.timeout(20):  # forty parts; one pause may be under way
            await made.snapshotter.save(made.core)
        assert made.store.snapshot_seq == 1_001
        await made.check()
