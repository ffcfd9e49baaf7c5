"""The log on disk: what was acknowledged is there, damage is found, one owner at a time."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from novamesh_coordinator.config import PostgresUrl
from novamesh_coordinator.core import Core
from novamesh_coordinator.events import JobAdmitted, MemberJoined
from novamesh_coordinator.snapshotter import Snapshotter
from novamesh_coordinator.store import Entry, open_store
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import JobId, MessageId, NodeId
from support.database_places import DatabasePlace, open_again
from support.table import Table


def joined(number: int) -> MemberJoined:
    who = NodeId(number.to_bytes(38, "big"))
    return MemberJoined(who, number, b"", 0, MessageId(number.to_bytes(32, "big")), 0)


def story() -> Table:
    """A pool with a settled job."""
    table = Table()
    client, node = table.client(), table.node()
    table.order(client, node)
    table.answer(table.assigned(node))
    return table


async def write_story(place: DatabasePlace) -> Table:
    table = story()
    store = await open_store(place.where)
    await store.load()
    await store.commit([Entry((record,)) for record in table.log])
    await store.close()
    return table


async def test_what_was_committed_is_read_back(place: DatabasePlace) -> None:
    table = await write_story(place)
    store = await open_store(place.where)
    loaded = await store.load()
    assert loaded.state is None
    assert loaded.records == tuple(table.log)
    core = Core(table.identity, loaded.state)
    core.replay(loaded.records)
    assert core.state() == table.core.state()
    assert store.mark.seq == len(table.log)
    await store.close()


async def test_a_snapshot_shortens_the_replay(place: DatabasePlace) -> None:
    table = await write_story(place)
    store = await open_store(place.where)
    await store.load()
    for _ in range(3):
        await Snapshotter(store).save(table.core)
    await store.commit([Entry((joined(1),))])
    await Snapshotter(store).save(table.core)
    await store.commit([Entry((joined(2), joined(3)))])
    await store.close()
    store = await open_store(place.where)
    loaded = await store.load()
    assert loaded.state == table.core.state()
    assert loaded.records == (joined(2), joined(3))
    assert store.snapshot_seq == len(table.log) + 1
    await store.close()
    assert place.run("select count(*) from snapshots") == [(2,)]


async def test_bodies_live_as_long_as_their_jobs(place: DatabasePlace) -> None:
    table = story()
    admitted = next(r for r in table.log if isinstance(r, JobAdmitted))
    store = await open_store(place.where)
    place = table.log.index(admitted) + 1
    await store.commit([Entry(tuple(table.log[:place]), (admitted.job, b"sealed"))])
    assert await store.body(admitted.job) == b"sealed"
    assert await store.body(JobId(bytes(32))) is None
    await store.commit([Entry(tuple(table.log[place:]))])
    assert await store.body(admitted.job) is None
    kinds = [type(record).__name__ for record in await store.records_of(admitted.job)]
    assert kinds == ["JobAdmitted", "JobAssigned", "AttemptAccepted", "AttemptSettled"]
    await store.close()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("update events set body = body || x'20' where seq = 3", "event 3 of the log was changed"),
        ("update events set kind = 'MemberBanned' where seq = 1", "event 1 of the log was changed"),
        ("delete from events where seq = 2", "event 2 is missing"),
        ("update snapshots set body = x'7b7d'", "the snapshot at event"),
        ("update snapshots set seq = seq - 1, digest = digest", "does not hold event"),
        ("delete from events where seq = (select max(seq) from snapshots)", "is missing from"),
    ],
)
async def test_damage_is_found_and_named(place: DatabasePlace, damage: str, said: str) -> None:
    table = await write_story(place)
    if "snapshots" in damage:
        store = await open_store(place.where)
        await store.load()
        await Snapshotter(store).save(table.core)
        await store.close()
    place.run(damage)
    store = await open_store(place.where)
    with pytest.raises(NovaMeshError, match=said) as refused:
        await store.load()
    assert refused.value.code is Code.CORRUPT
    assert "backup" in refused.value.hint
    await store.close()


async def test_a_record_of_a_newer_version_is_refused(place: DatabasePlace) -> None:
    store = await open_store(place.where)
    await store.commit([Entry((joined(1),))])
    await store.close()
    place.run("update events set kind = 'Unheard'")
    store = await open_store(place.where)
    with pytest.raises(NovaMeshError):
        await store.load()
    await store.close()


async def test_a_commit_that_fails_leaves_nothing(place: DatabasePlace) -> None:
    store = await open_store(place.where)
    await store.commit([Entry((joined(1),), (JobId(bytes(32)), b"x"))])
    with pytest.raises(NovaMeshError) as refused:
        await store.commit([Entry((joined(2),), (JobId(bytes(32)), b"same job again"))])
    assert refused.value.code is Code.STORAGE
    assert store.mark.seq == 1
    await store.probe(5)
    await store.commit([Entry((joined(2),))])
    assert (await store.load()).records == (joined(1), joined(2))
    await store.close()


CHILD = """
import asyncio, logging, sys
from pathlib import Path
import structlog
from novamesh_coordinator.config import PostgresUrl
from novamesh_coordinator.events import MemberJoined
from novamesh_coordinator.store import Entry, open_store

structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))

async def main():
    where = sys.argv[1]
    store = await open_store(PostgresUrl(where) if "://" in where else Path(where))
    await store.load()
    for number in range(store.mark.seq + 1, 10**9):
        who = number.to_bytes(38, "big")
        claim = number.to_bytes(32, "big")
        await store.commit([Entry((MemberJoined(who, number, b"", 0, claim, 0),))])
        print(number, flush=True)

asyncio.run(main())
"""


async def test_an_acknowledged_write_survives_kill_9(place: DatabasePlace) -> None:
    acknowledged, where = 0, place.where
    name = where.url if isinstance(where, PostgresUrl) else str(where)
    for _ in range(3):
        child = subprocess.Popen(  # noqa: ASYNC220  nothing else runs here
            [sys.executable, "-c", CHILD, name],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        for _ in range(25):
            acknowledged = int(child.stdout.readline())
        child.send_signal(signal.SIGKILL)
        child.wait(10)
        acknowledged = max([acknowledged, *map(int, child.stdout.read().split())])
        child.stdout.close()
        store = await open_again(place.where)
        loaded = await store.load()
        assert len(loaded.records) >= acknowledged
        assert loaded.records == tuple(joined(n) for n in range(1, len(loaded.records) + 1))
        await store.close()


async def test_a_schema_of_a_newer_version_is_refused(place: DatabasePlace) -> None:
    await (await open_store(place.where)).close()
    place.run("update alembic_version set version_num = '9999'")
    with pytest.raises(NovaMeshError, match="does not know") as refused:
        await open_store(place.where)
    assert refused.value.code is Code.CORRUPT
