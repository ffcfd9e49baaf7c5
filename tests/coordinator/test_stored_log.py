"""What is read back of a log: in pages, from any place, and only what one connection sees."""

from __future__ import annotations

import pytest

from novamesh_coordinator import stored_log
from novamesh_coordinator.core import Core
from novamesh_coordinator.log_chain import Mark
from novamesh_coordinator.snapshotter import Snapshotter
from novamesh_coordinator.store import Entry, open_store
from novamesh_proto.errors import Code, NovaMeshError
from support.database_places import DatabasePlace
from support.table import Table


async def write(place: DatabasePlace) -> Table:
    """A log with a snapshot at its end."""
    table = Table()
    client, node = table.client(), table.node()
    table.order(client, node)
    table.answer(table.assigned(node))
    store = await open_store(place.where)
    await store.load()
    await store.commit([Entry((record,)) for record in table.log])
    await Snapshotter(store).save(table.core)
    await store.close()
    return table


async def test_older_events_are_checked_a_page_at_a_time(
    place: DatabasePlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_log, "ROWS_AT_ONCE", 2)
    table = await write(place)
    store = await open_store(place.where)
    assert (await store.load()).records == ()
    assert store.mark.seq == len(table.log)
    await store.close()
    place.run("delete from events where seq in (3, 4)")
    store = await open_store(place.where)
    with pytest.raises(NovaMeshError, match="event 3 is missing") as refused:
        await store.load()
    assert refused.value.code is Code.CORRUPT
    await store.close()


async def test_a_log_is_followed_from_where_it_was_read_to(
    place: DatabasePlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_log, "ROWS_AT_ONCE", 3)
    table = await write(place)
    store = await open_store(place.where)
    core, mark, pages = Core(table.identity), Mark(), 0
    while True:
        records, mark = await store._database.read(
            "read", lambda reader, mark=mark: stored_log.read_after(reader, mark)
        )
        if not records:
            break
        core.replay(records)
        pages += 1
    assert core.state() == table.core.state()
    assert mark == await store._database.read("read", stored_log.read_end)
    assert pages >= len(table.log) // 3
    await store.close()


async def test_a_change_in_what_follows_is_found(place: DatabasePlace) -> None:
    table = await write(place)
    place.run("update events set body = body || x'20' where seq = 2")
    store = await open_store(place.where)
    with pytest.raises(NovaMeshError, match="event 2 of the log was changed"):
        await store.follow()
    assert len(table.log) > 2
    await store.close()


@pytest.mark.parametrize(
    "loss",
    ["delete from events where seq = (select max(seq) from events)", "delete from events"],
)
async def test_a_log_that_has_lost_what_was_read_is_refused(
    place: DatabasePlace, loss: str
) -> None:
    await write(place)
    store = await open_store(place.where)
    await store.load()
    assert await store.follow() == ()
    place.run(loss)
    with pytest.raises(NovaMeshError, match="as it was read before") as refused:
        await store.follow()
    assert refused.value.code is Code.CORRUPT
    await store.close()


async def test_an_empty_log_ends_at_its_beginning(place: DatabasePlace) -> None:
    store = await open_store(place.where)
    assert await store._database.read("read", stored_log.read_end) == Mark()
    await store.close()
