"""Step, commit, effects, reply: in that order, and what happens when the disk refuses."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from novamesh_coordinator import inputs, sequencer, snapshotter
from novamesh_coordinator.effects import Assign, Effect, Publish, Wake
from novamesh_coordinator.inputs import JobAsked, JoinAsked
from novamesh_coordinator.sequencer import Clock, Sequencer
from novamesh_coordinator.store import Entry, Store, open_store
from novamesh_coordinator.stored_log import Loaded
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import JobQuery, JobState, JoinClaim
from support.actors import ClientActor
from support.parties import COORDINATOR
from support.table import Table
from support.waiting import wait_until


class Disk:
    """A store that can be told to hang or to refuse."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.full = False
        self.go = asyncio.Event()
        self.go.set()
        self.batches: list[int] = []
        self.unreadable = 0

    async def commit(self, entries: list[Entry]) -> None:
        await self.go.wait()
        self._refuse()
        self.batches.append(len(entries))
        await self._store.commit(entries)

    async def load(self) -> Loaded:
        if self.unreadable:
            self.unreadable -= 1
            raise NovaMeshError(Code.STORAGE, "cannot read the log: I/O error")
        return await self._store.load()

    async def probe(self, now_ms: int) -> None:
        self._refuse()
        await self._store.probe(now_ms)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def _refuse(self) -> None:
        if self.full:
            raise NovaMeshError(Code.STORAGE, "cannot write the log: disk is full")


class Rig:
    """A sequencer over a table's core and a disk."""

    def __init__(self, table: Table, disk: Disk) -> None:
        self.table = table
        self.disk = disk
        self.delivered: list[Effect] = []
        clock = Clock(table.clock.now_ms, table.clock.monotonic)
        self.sequencer = Sequencer(
            table.core,
            disk,  # type: ignore[arg-type]
            clock,
            table.rng,
            self.delivered.append,
        )

    def claim(self, name: str) -> JoinAsked:
        invite = self.table.invite(uses=100)
        claim = ClientActor(name, COORDINATOR.node_id).claim(self.table.now_ms, invite)
        return JoinAsked(self.table.verifier.open(claim, JoinClaim, self.table.now_ms))

    def join(self, name: str) -> asyncio.Task[object]:
        return asyncio.create_task(self.sequencer.submit(self.claim(name)))


@contextlib.asynccontextmanager
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    table = Table()
    store = await open_store(tmp_path / "c.db")
    made = Rig(table, Disk(store))
    sequencer = made.sequencer
    loops = [asyncio.create_task(run()) for run in sequencer.loops() if run != sequencer.run_timer]
    try:
        yield made
    finally:
        for loop in loops:
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)
        await store.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequencer, "PROBE_S", 0.01)
    monkeypatch.setattr(sequencer, "TICK_S", 0.01)


async def settle() -> None:
    """Let everything that can run do so."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_no_reply_and_no_effect_before_the_commit(tmp_path: Path) -> None:
    async with rig(tmp_path) as made:
        made.disk.go.clear()
        waiting = made.join("client")
        await settle()
        assert not waiting.done()
        made.disk.go.set()
        await waiting


async def test_asked_again_it_promises_no_sooner(tmp_path: Path) -> None:
    async with rig(tmp_path) as made:
        made.disk.go.clear()
        first = made.join("client")
        await settle()
        again = made.join("client")
        await settle()
        assert not again.done()
        made.disk.go.set()
        await asyncio.gather(first, again)
        assert made.disk.batches == [1]


async def test_steps_share_a_commit_while_the_disk_is_busy(tmp_path: Path) -> None:
    async with rig(tmp_path) as made:
        made.disk.go.clear()
        first = made.join("c0")
        await settle()
        rest = [made.join(f"c{n}") for n in range(1, 10)]
        await settle()
        made.disk.go.set()
        await asyncio.gather(first, *rest)
        assert made.disk.batches == [1, 9]


async def test_a_read_waits_for_what_was_decided_before_it(tmp_path: Path) -> None:
    async with rig(tmp_path) as made:
        table = made.table
        client, node = table.client(), table.node()
        advert = table.core.registry._adverts[node.id].descriptor
        order = client.seal([advert], table.now_ms)
        submitted = table.verifier.open_job(order.job, (), table.now_ms)
        made.disk.go.clear()
        writing = asyncio.create_task(made.sequencer.submit(submitted, (order.id, b"body")))
        await settle()
        query = table.verifier.open_query(
            client.ask(order.id, table.now_ms), JobQuery, table.now_ms
        )
        reading = asyncio.create_task(made.sequencer.submit(JobAsked(query)))
        await settle()
        assert not reading.done()
        assert not made.delivered
        made.disk.go.set()
        view: Any = await reading
        assert view.state is JobState.ASSIGNED
        await writing
        assert [type(effect) for effect in made.delivered] == [Assign, Publish]
        assert await made.disk.body(order.id) == b"body"


async def test_a_full_disk_refuses_new_work_and_goes_on_reading(tmp_path: Path) -> None:
    async with rig(tmp_path) as made:
        await made.join("alice")
        durable = made.sequencer.core.state()
        made.disk.full = True
        with pytest.raises(NovaMeshError) as refused:
            await made.join("bob")
        assert refused.value.code is Code.STORAGE
        assert made.sequencer.core.state() == durable
        assert not made.sequencer.healthy
        with pytest.raises(NovaMeshError) as refused:
            await made.join("carol")
        assert (refused.value.code, refused.value.retry_after_ms > 0) == (Code.STORAGE, True)
        alice = ClientActor("alice", COORDINATOR.node_id)
        query = made.table.verifier.open_query(
            alice.ask_all(made.table.now_ms), inputs.JobsQuery, made.table.now_ms
        )
        assert await made.sequencer.submit(inputs.JobsAsked(query)) == ()
        made.disk.full = False
        async with asyncio.timeout(5):
            await made.sequencer._healthy.wait()
        await made.join("bob")


async def test_what_a_node_says_waits_for_the_disk(tmp_path: Path) -> None:
    async with rig(tmp_path) as made:
        table = made.table
        claim = ClientActor("dora", COORDINATOR.node_id).claim(table.now_ms, table.invite())
        event = JoinAsked(table.verifier.open(claim, JoinClaim, table.now_ms))
        made.disk.full = True
        insisting = asyncio.create_task(made.sequencer.insist(event))
        await wait_until(lambda: not made.sequencer.healthy)
        assert not insisting.done()
        made.disk.full = False
        async with asyncio.timeout(5):
            await insisting
        assert len(made.sequencer.core.membership) == 1


async def test_a_bug_in_a_step_costs_that_step_only(tmp_path: Path) -> None:
    async with rig(tmp_path) as made:
        await made.join("alice")
        durable = made.sequencer.core.state()
        with pytest.raises(KeyError):
            await made.sequencer.submit("nonsense")  # type: ignore[arg-type]
        await made.join("alice")
        assert made.sequencer.core.state() == durable


async def test_a_snapshot_at_the_end_holds_everything(tmp_path: Path) -> None:
    async with rig(tmp_path) as made:
        await made.join("alice")
        await made.sequencer.save()
        loaded = await made.disk.load()
        assert (loaded.state, loaded.records) == (made.sequencer.core.state(), ())


async def test_snapshots_are_taken_on_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshotter, "SNAPSHOT_EVERY", 5)
    async with rig(tmp_path) as made:
        for number in range(12):
            await made.join(f"c{number}")
        timer = asyncio.create_task(made.sequencer.run_timer())
        await wait_until(lambda: made.disk.snapshot_seq >= 8)
        timer.cancel()
        loaded = await made.disk.load()
        assert loaded.state is not None
        assert len(loaded.records) < 5


async def test_too_much_waiting_for_the_disk_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sequencer, "QUEUE_MAX", 2)
    async with rig(tmp_path) as made:
        made.disk.go.clear()
        waiting = [made.join("first")]
        await settle()
        waiting += [made.join(f"c{n}") for n in range(2)]
        await settle()
        with pytest.raises(NovaMeshError) as refused:
            await made.join("late")
        assert (refused.value.code, refused.value.retry_after_ms) == (Code.BUSY, 1_000)
        made.disk.go.set()
        await asyncio.gather(*waiting)


async def test_chunks_do_not_wait_for_other_jobs_commits(tmp_path: Path) -> None:
    async with rig(tmp_path) as made:
        table = made.table
        client, node = table.client(), table.node()
        order = table.order(client, node)
        attempt = table.assigned(node)
        made.disk.go.clear()
        waiting = made.join("slow")
        await settle()
        arrived = inputs.ChunkArrived(node.id, table.sessions[node.id], attempt.chunk())
        await made.sequencer.submit(arrived)
        assert made.delivered == [Wake(order.id)]
        assert not waiting.done()
        made.disk.go.set()
        await waiting


async def test_time_passes_and_a_bug_in_a_tick_does_not_stop_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rig(tmp_path) as made:
        table = made.table
        client, node = table.client(), table.node()
        order = table.order(client, node)
        timer = asyncio.create_task(made.sequencer.run_timer())
        await asyncio.sleep(0.03)
        monkeypatch.setattr(made.sequencer.core, "step", None)
        await asyncio.sleep(0.03)
        monkeypatch.undo()
        table.clock.advance(16)
        # The disk of this test knows nothing of the table's job, so the rebuilt core forgets it.
        await wait_until(lambda: made.sequencer.core.jobs.get(order.id) is None)
        assert not timer.done()
        timer.cancel()


async def test_a_lease_runs_out_by_itself(tmp_path: Path) -> None:
    async with rig(tmp_path) as made:
        table = made.table
        client, node = table.client(), table.node()
        order = table.order(client, node)
        timer = asyncio.create_task(made.sequencer.run_timer())
        table.clock.advance(16)

        def failed() -> bool:
            job = made.sequencer.core.jobs.get(order.id)
            return job is not None and job.state is JobState.FAILED

        await wait_until(failed)
        made.disk.full = True
        table.clock.advance(2_000)
        await wait_until(lambda: not made.sequencer.healthy)
        timer.cancel()


async def test_a_disk_that_cannot_be_read_either_is_asked_again(tmp_path: Path) -> None:
    async with rig(tmp_path) as made:
        await made.join("alice")
        made.disk.full, made.disk.unreadable = True, 3
        with pytest.raises(NovaMeshError):
            await made.join("bob")
        await wait_until(made.sequencer._ready.is_set)
        assert made.disk.unreadable == 0
        assert len(made.sequencer.core.membership) == 1


async def test_nobody_waits_for_a_disk_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sequencer, "PROBE_S", 0.2)
    async with rig(tmp_path) as made:
        await made.join("alice")
        made.disk.full, made.disk.unreadable = True, 1_000_000
        with pytest.raises(NovaMeshError, match="cannot read") as refused:
            await made.join("bob")
        assert refused.value.code is Code.STORAGE
        with pytest.raises(NovaMeshError, match="cannot be read") as refused:
            await made.join("carol")
        assert (refused.value.code, bool(refused.value.hint)) == (Code.STORAGE, True)
        made.disk.full, made.disk.unreadable = False, 0
        async with asyncio.timeout(5):
            await made.sequencer.insist(made.claim("bob"))
        assert len(made.sequencer.core.membership) == 2


async def test_an_answer_goes_on_while_the_disk_takes_no_writes(tmp_path: Path) -> None:
    async with rig(tmp_path) as made:
        table = made.table
        client, node = table.client(), table.node()
        order = table.order(client, node)
        attempt = table.assigned(node)
        made.sequencer._healthy.clear()
        made.disk.full = True
        arrived = inputs.ChunkArrived(node.id, table.sessions[node.id], attempt.chunk())
        async with asyncio.timeout(5):
            await made.sequencer.insist(arrived)
        assert made.delivered == [Wake(order.id)]


async def test_whoever_may_not_write_any_more_ends_and_tells_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await open_store(tmp_path / "c.db")
    made = Rig(Table(), Disk(store))
    lost = NovaMeshError(Code.CONFLICT, "another coordinator has become the one that writes")

    async def refuse(entries: list[Entry]) -> None:
        raise lost

    monkeypatch.setattr(made.disk, "commit", refuse)
    waiting = made.join("client")
    with pytest.raises(NovaMeshError) as ended:
        await asyncio.wait_for(made.sequencer.run_writer(), 30)
    assert ended.value is lost
    assert not waiting.done()
    assert made.delivered == []
    waiting.cancel()
    await store.close()


async def test_no_new_work_is_taken_while_nobody_knows_what_became_of_a_commit(
    tmp_path: Path,
) -> None:
    async with rig(tmp_path) as made:
        made.disk._store.unsure = True
        assert not made.sequencer.healthy
        with pytest.raises(NovaMeshError) as refused:
            await made.join("client")
        assert refused.value.code is Code.STORAGE
        await asyncio.sleep(0.1)
        assert not made.sequencer.healthy  # a probe that gets through says nothing of it
        made.disk._store.unsure = False
        await made.join("client")
