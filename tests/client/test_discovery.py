"""Whatever way a descriptor comes, it is believed for nothing but its node's own signature."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from novamesh import discovery
from novamesh.clock import Clock
from novamesh.discovery import AskedNodes, Discovery, Finder, Gossiped, PoolList
from novamesh.known_nodes import KnownNodes
from novamesh.pool import PoolConnection
from novamesh_proto import envelope, wire
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.identity import PrivateKey
from novamesh_proto.messages import Envelope, NodeDescriptor, NodeId, ProfileDigest
from novamesh_proto.node_table import Source
from novamesh_proto.v1 import coordinator_pb2 as pb
from support.clock import START_MS, ManualClock
from support.fake_answer import NETWORK, PICO
from support.fake_pool import FakePool
from support.found_nodes import Way, advert
from support.parties import CLIENT, party
from support.ports import free_port

ONE, TWO = party("one"), party("two")
FORGED = replace(advert(party("forger")), payload=advert(ONE).payload)


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "PAUSES_S", (0.01,))
    monkeypatch.setattr(discovery, "ASK_EVERY_S", 0.05)


@contextlib.asynccontextmanager
async def finding(
    folder: Path, *ways: Discovery, clock: ManualClock | None = None
) -> AsyncIterator[tuple[Finder, list[NodeId]]]:
    """A finder at work, and whom it learnt of."""
    clock, learnt = clock or ManualClock(), list[NodeId]()
    known = KnownNodes(folder / "nodes.json")
    time = Clock(clock.now_ms, clock.monotonic)
    finder = Finder(NETWORK, time, ways, known, lambda node, said: learnt.append(node))
    task = asyncio.create_task(finder.run())
    try:
        yield finder, learnt
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def here(finder: Finder, now_ms: int = START_MS) -> set[NodeId]:
    return {entry.node for entry in finder.table.fresh(now_ms)}


async def found(finder: Finder, *keys: PrivateKey) -> bool:
    return await finder.wait(lambda: here(finder) >= {key.node_id for key in keys}, 10)


async def test_three_ways_fill_one_table(tmp_path: Path) -> None:
    ways = (
        Way(Source.COORDINATOR, advert(ONE, sequence=3)),
        Way(Source.MQTT, advert(TWO)),
        Way(Source.LIBP2P, advert(ONE, sequence=4), advert(TWO, sequence=2)),
    )
    async with finding(tmp_path, *ways) as (finder, learnt):
        assert await found(finder, ONE, TWO)
        assert await finder.wait(lambda: len(learnt) >= 3, 10)
        newest = finder.table.get(ONE.node_id, START_MS)
        assert newest is not None
        assert newest.message.sequence == 4


@pytest.mark.parametrize("source", list(Source))
async def test_what_is_forged_old_or_foreign_is_counted_and_nothing_else(
    tmp_path: Path, source: Source
) -> None:
    bad = (
        FORGED,
        advert(ONE, now_ms=START_MS - 600_000),
        advert(ONE, network="elsewhere"),
        advert(ONE, life_ms=3_600_000),
    )
    async with finding(tmp_path, Way(source, *bad, advert(TWO))) as (finder, learnt):
        assert await found(finder, TWO)
        assert here(finder) == {TWO.node_id}
        assert learnt == [TWO.node_id]
        assert sum(finder.table.refused.values()) == len(bad)
        assert finder.table.refused[Code.BAD_SIGNATURE] == 1


async def test_a_replayed_older_descriptor_changes_nothing(tmp_path: Path) -> None:
    way = Way(Source.LIBP2P, advert(ONE, sequence=5), advert(ONE, sequence=4), advert(TWO))
    async with finding(tmp_path, way) as (finder, _):
        assert await found(finder, ONE, TWO)
        kept = finder.table.get(ONE.node_id, START_MS)
        assert kept is not None
        assert kept.message.sequence == 5


async def test_a_way_that_closes_is_tried_again_and_stops_no_other(tmp_path: Path) -> None:
    closed = Way(Source.COORDINATOR, None, None, advert(ONE))
    async with finding(tmp_path, closed, Way(Source.LIBP2P, advert(TWO))) as (finder, _):
        assert await found(finder, ONE, TWO)
        assert closed.opened == 3


async def test_a_way_with_a_bug_is_told_of_and_stops_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Buggy(Way):
        async def descriptors(self) -> AsyncGenerator[Envelope]:
            self.opened += 1
            yield advert(ONE, sequence=self.opened)
            raise ZeroDivisionError

    buggy = Buggy(Source.MQTT)
    async with finding(tmp_path, buggy, Way(Source.LIBP2P, advert(TWO))) as (finder, _):
        assert await found(finder, ONE, TWO)
        assert await finder.wait(lambda: buggy.opened >= 3, 10)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("ERROR", "no nodes by way of mqtt: ZeroDivisionError")
    ]


async def test_a_way_that_breaks_at_once_is_tried_seldom_and_told_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """However much it told before; one that was open for long is tried again soon."""
    monkeypatch.setattr(discovery, "PAUSES_S", (0.0, 0.01, 30.0))
    clock = ManualClock()
    broken = Way(Source.MQTT, advert(ONE), None, advert(TWO), None, advert(ONE, sequence=2), None)
    with caplog.at_level("INFO", discovery.__name__):
        async with finding(tmp_path, broken, clock=clock) as (finder, _):
            assert await found(finder, ONE, TWO)
            await asyncio.sleep(0.2)
            assert broken.opened == 3, "now it waits for half a minute"
    assert [record.getMessage() for record in caplog.records] == [
        "no nodes by way of mqtt: this way is closed"
    ]


async def test_who_is_silent_is_absent(tmp_path: Path) -> None:
    clock = ManualClock()
    async with finding(tmp_path, Way(Source.LIBP2P, advert(ONE)), clock=clock) as (finder, _):
        assert await found(finder, ONE)
        clock.advance(121)
        assert here(finder, clock.now_ms()) == set()


async def test_addresses_outlive_the_search(tmp_path: Path) -> None:
    """Those of nodes that answered there, or that the pool lists: not what strangers tell."""
    way = Way(Source.STATIC, advert(ONE, "198.51.100.1:7702", "/ip4/198.51.100.1/tcp/1"))
    gossip = Way(Source.LIBP2P, advert(TWO, "198.51.100.2:7702"))
    left = Way(Source.MQTT, advert(party("three"), "198.51.100.3:7702"))
    async with finding(tmp_path, way, gossip, left) as (finder, _):
        assert await found(finder, ONE, TWO, party("three"))
        assert KnownNodes(tmp_path / "nodes.json").addresses(), "a kill would not lose it"
    known = KnownNodes(tmp_path / "nodes.json")
    assert known.addresses() == ((ONE.node_id, ("198.51.100.1:7702",)),)


async def test_where_nobody_answers_is_asked_more_and_more_seldom() -> None:
    now_s = 0.0
    clock = Clock(lambda: START_MS, lambda: now_s)
    dead = [(ONE.node_id, ("127.0.0.1:1",))]
    asked = AskedNodes(NETWORK, CLIENT, clock, lambda: dead)
    tried = 0
    for _ in range(200):
        for one in asked._worth_asking():
            tried += 1
            assert await asked._ask(*one) == ()
        now_s += discovery.ASK_EVERY_S
    assert 6 <= tried <= 16, "of 200 rounds"
    dead.clear()
    assert asked._worth_asking() == []
    assert asked._silent == {}


async def test_a_hint_counts_once_its_node_says_so_itself(tmp_path: Path) -> None:
    async def hints(profile: ProfileDigest) -> AsyncGenerator[Envelope]:
        assert profile == PICO
        yield advert(ONE)
        yield advert(TWO, network="elsewhere")
        raise NovaMeshError(Code.UNAVAILABLE, "the mesh is starting")

    clock = ManualClock()
    known = KnownNodes(tmp_path / "nodes.json")
    time = Clock(clock.now_ms, clock.monotonic)
    finder = Finder(NETWORK, time, (), known, lambda node, said: None, hints)
    await finder.follow_hints(PICO)
    assert [entry.node for entry in finder.table.fresh(START_MS)] == [ONE.node_id]
    await Finder(NETWORK, time, (), known, lambda node, said: None).follow_hints(PICO)


async def test_waiting_has_an_end(tmp_path: Path) -> None:
    async with finding(tmp_path) as (finder, _):
        assert not await finder.wait(lambda: False, 0.01)


async def test_gossip_that_is_no_envelope_is_dropped() -> None:
    async def heard() -> AsyncIterator[bytes]:
        for raw in (b"", b"\xff" * 40, bytes(5000), wire.encode(advert(ONE))):
            yield raw

    (told,) = [sealed async for sealed in Gossiped(heard).descriptors()]
    assert envelope.open(told, NodeDescriptor, network=NETWORK).issuer == ONE.node_id


class Listing(FakePool):
    """A pool, or a node, that lists descriptors."""

    told: tuple[Envelope, ...] = ()

    def ListDescriptors(self, request: object, context: object) -> pb.ListDescriptorsResponse:
        self.calls["ListDescriptors"] += 1
        return pb.ListDescriptorsResponse(descriptors=[wire.to_pb(one) for one in self.told])


async def test_the_coordinator_is_asked_again_and_again() -> None:
    with Listing() as pool:
        pool.told = (advert(ONE), advert(TWO))
        connection = PoolConnection(pool.entry, CLIENT, Clock.system(), 5.0)
        try:
            async with contextlib.aclosing(PoolList(connection).descriptors()) as told:
                several = [await anext(told) for _ in range(5)]
        finally:
            await connection.close()
    assert several[:2] == list(pool.told)
    assert pool.calls["ListDescriptors"] >= 3


async def test_known_nodes_are_asked_themselves_and_who_is_away_is_passed_over() -> None:
    with Listing(name="one") as node:
        node.told = (advert(ONE),)
        addresses = [
            (TWO.node_id, (f"127.0.0.1:{free_port()}", node.address)),  # another answers there
            (ONE.node_id, (node.address,)),
        ]
        asked = AskedNodes(NETWORK, CLIENT, Clock.system(), lambda: addresses)
        async with contextlib.aclosing(asked.descriptors()) as told:
            assert await asyncio.wait_for(anext(told), 10) == node.told[0]
            assert await asyncio.wait_for(anext(told), 10) == node.told[0]


async def test_nobody_is_asked_any_more_once_the_search_has_ended() -> None:
    before = asyncio.all_tasks()
    nowhere = [(party(f"n{n}").node_id, (f"127.0.0.1:{free_port()}",)) for n in range(4)]
    with Listing(name="one") as node:
        node.told = (advert(ONE),)
        nowhere.insert(0, (ONE.node_id, (node.address,)))
        asked = AskedNodes(NETWORK, CLIENT, Clock.system(), lambda: nowhere)
        async with contextlib.aclosing(asked.descriptors()) as told:
            await asyncio.wait_for(anext(told), 10)
    assert asyncio.all_tasks() == before
