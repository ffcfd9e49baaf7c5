"""A client's search: with the mesh, without its extra, and what is said where nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from novamesh import search
from novamesh.clock import Clock
from novamesh.config import ClientSettings, Config, Places, save_setting
from novamesh.known_nodes import KnownNodes
from novamesh.pool import PoolConnection
from novamesh.search import Search, parse_nodes
from novamesh_proto import wire
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.identity import format_node_id
from novamesh_proto.messages import Envelope, NodeId
from novamesh_proto.names import TOPIC_DESCRIPTOR, node_topic
from support.clock import START_MS, ManualClock
from support.fake_answer import NETWORK, PICO
from support.fake_pool import FakePool
from support.found_nodes import advert
from support.mosquitto import Mosquitto
from support.mqtt import WALL, retain
from support.parties import CLIENT, party

ONE = party("one")
PEER = format_node_id(ONE.node_id)
MULTIADDRESS = "/ip4/127.0.0.1/tcp/4001"


class FakeMesh:
    """A mesh in memory: what it hears, and whom it was told of."""

    def __init__(self, config: Any, check: Any) -> None:
        self.check = check
        self.learnt: dict[NodeId, tuple[str, ...]] = {}
        self.inside = False

    async def __aenter__(self) -> FakeMesh:
        self.inside = True
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.inside = False

    async def descriptors(self) -> AsyncIterator[bytes]:
        yield wire.encode(advert(ONE, MULTIADDRESS, "198.51.100.1:7702"))
        await asyncio.Event().wait()

    async def find_providers(self, profile: bytes) -> tuple[NodeId, ...]:
        return (party("gone").node_id, ONE.node_id)

    def learn(self, node: NodeId, addresses: tuple[str, ...]) -> None:
        self.learnt[node] = addresses

    @contextlib.asynccontextmanager
    async def open_tunnel(
        self, node: NodeId, addresses: tuple[str, ...] = ()
    ) -> AsyncIterator[str]:
        if node != ONE.node_id:
            raise NovaMeshError(Code.UNAVAILABLE, "it cannot be reached")
        yield f"unix:/tunnel/{len(addresses)}"


class NoMesh(FakeMesh):
    """This machine has no libp2p."""

    async def __aenter__(self) -> FakeMesh:
        raise NovaMeshError(Code.UNSUPPORTED, "libp2p is not installed", "pip install …[p2p]")


@contextlib.asynccontextmanager
async def searching(folder: Path, nodes: str = "", mqtt: str = "") -> AsyncIterator[Search]:
    clock = ManualClock()
    time = Clock(clock.now_ms, clock.monotonic)
    pool = FakePool()
    pool.address = "127.0.0.1:1"
    places = Places(folder, folder, folder, folder)
    config = Config(places, pool.entry, ClientSettings(nodes=nodes, mqtt=mqtt))
    connection = PoolConnection(pool.entry, CLIENT, time, 0.2)
    looking = Search(config, connection, time)
    try:
        yield looking
    finally:
        await looking.close()
        await connection.close()


async def test_the_mesh_tells_who_is_there_and_how_they_are_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "Mesh", FakeMesh)
    async with searching(tmp_path) as looking:
        finder, again = await asyncio.gather(looking.finder(), looking.finder())
        assert finder is again
        assert await finder.wait(lambda: bool(list(finder.table.fresh(START_MS))), 10)
        mesh: Any = looking._mesh
        assert mesh.learnt == {ONE.node_id: (MULTIADDRESS,)}
        async with looking.tunnel(ONE.node_id, (MULTIADDRESS,)) as address:
            assert address == "unix:/tunnel/1"
        mesh.check(wire.encode(advert(ONE)))
        for raw in (b"\xff", wire.encode(advert(ONE, network="elsewhere")), bytes(5000)):
            with pytest.raises(NovaMeshError):
                mesh.check(raw)
    assert not mesh.inside
    assert KnownNodes(tmp_path / "nodes.json").addresses() == (), "gossip is not whom we dial"


async def test_hints_of_the_mesh_are_followed_to_the_nodes_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One cannot be reached; at the end of the other's tunnel nobody answers: no hint, no error."""
    monkeypatch.setattr(search, "Mesh", FakeMesh)
    monkeypatch.setattr(search, "ASK_S", 0.2)
    async with searching(tmp_path) as looking:
        assert [each async for each in looking._hints(PICO)] == []
        await looking.finder()
        assert [each async for each in looking._hints(PICO)] == []


async def test_without_the_mesh_nodes_that_are_known_are_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "Mesh", NoMesh)
    async with searching(tmp_path, f"{PEER}@127.0.0.1:1") as looking:
        assert await looking.finder()
        with pytest.raises(NovaMeshError) as caught:
            async with looking.tunnel(ONE.node_id, (MULTIADDRESS,)):
                raise AssertionError("there is no mesh")
        assert caught.value.code is Code.UNSUPPORTED


async def test_what_was_met_before_is_known_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "Mesh", NoMesh)
    known = KnownNodes(tmp_path / "nodes.json")
    known.learn(ONE.node_id, ("127.0.0.1:1",))
    known.save()
    async with searching(tmp_path) as looking:
        assert await looking.finder()


async def test_where_no_way_is_left_it_is_said_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "Mesh", NoMesh)
    async with searching(tmp_path) as looking:
        for _ in range(2):
            with pytest.raises(NovaMeshError) as caught:
                await looking.finder()
            assert caught.value.code is Code.UNSUPPORTED
            for way_out in ("[p2p]", "client.nodes PEERID@HOST:PORT", "client.mqtt mqtts://"):
                assert way_out in caught.value.hint


@pytest.mark.parametrize("on", [False, True])
async def test_a_tunnel_starts_no_mesh_that_is_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on: bool
) -> None:
    """Who did not ask for the mesh gets no libp2p because a coordinator is away or far."""
    monkeypatch.setattr(search, "Mesh", FakeMesh)
    async with searching(tmp_path) as looking:
        save_setting(looking._config.places, "mesh", "on", on)
        with contextlib.nullcontext() if on else pytest.raises(NovaMeshError) as caught:
            async with looking.tunnel(ONE.node_id, (MULTIADDRESS,)):
                assert on
        assert (looking._mesh is not None) is on
        assert on or caught.value.code is Code.UNSUPPORTED


async def test_who_waits_for_a_search_begun_in_advance_finds_it_at_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "WARM_UP_S", 0.0)
    monkeypatch.setattr(search, "Mesh", FakeMesh)
    async with searching(tmp_path) as looking:
        await looking.warmed_up()
        assert looking._mesh is None, "nobody asked for it"
        looking.warm_up()
        await looking.warmed_up()
        assert looking._mesh is not None


async def test_a_broker_is_a_way_too_and_needs_no_mesh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "Mesh", NoMesh)
    node = advert(ONE, now_ms=WALL())
    with Mosquitto(tmp_path / "broker") as mosquitto:
        broker = mosquitto.broker()
        await retain(broker, {node_topic(NETWORK, PEER, TOPIC_DESCRIPTOR): wire.encode(node)})
        async with searching(tmp_path, mqtt=str(broker)) as looking:
            looking._clock = Clock.system()
            finder = await looking.finder()
            assert await finder.wait(lambda: bool(list(finder.table.fresh(WALL()))), 15)
    assert KnownNodes(tmp_path / "nodes.json").addresses() == (), "strangers write there"


async def test_without_its_library_a_broker_is_left_out_or_said_to_be_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "Mesh", NoMesh)
    monkeypatch.setitem(sys.modules, "aiomqtt", None)
    for held in ("novamesh.retained", "novamesh_broker.connection"):
        monkeypatch.delitem(sys.modules, held, raising=False)
    async with searching(tmp_path, mqtt="mqtts://broker.example") as looking:
        with pytest.raises(NovaMeshError) as caught:
            await looking.finder()
    assert caught.value.code is Code.UNSUPPORTED
    assert "aiomqtt is missing" in caught.value.message
    assert "novamesh[mqtt]" in caught.value.hint
    async with searching(tmp_path, f"{PEER}@127.0.0.1:1", "mqtts://broker.example") as looking:
        assert await looking.finder()


async def test_a_broker_that_makes_no_sense_is_an_error_whatever_else_is_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "Mesh", FakeMesh)
    async with searching(tmp_path, mqtt="broker.example") as looking:
        with pytest.raises(NovaMeshError) as caught:
            await looking.finder()
    assert caught.value.code is Code.BAD_CONFIG


async def test_the_coordinators_list_is_a_way_as_long_as_it_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "Mesh", NoMesh)
    async with searching(tmp_path) as looking:

        async def list_descriptors() -> tuple[Envelope, ...]:
            return (advert(ONE),)

        monkeypatch.setattr(looking._pool, "list_descriptors", list_descriptors)
        finder = await looking.finder()
        assert await finder.wait(lambda: bool(list(finder.table.fresh(START_MS))), 10)


async def test_a_search_that_never_began_ends_quietly(tmp_path: Path) -> None:
    async with searching(tmp_path):
        pass
    async with searching(tmp_path) as looking:
        looking.warm_up()


def test_a_static_list_is_read() -> None:
    other = format_node_id(party("two").node_id)
    text = f" {PEER}@198.51.100.1:7702 ,{other}@[::1]:7702,"
    assert parse_nodes(text) == (
        (ONE.node_id, ("198.51.100.1:7702",)),
        (party("two").node_id, ("[::1]:7702",)),
    )
    assert parse_nodes("") == ()


@pytest.mark.parametrize("text", ["nobody", PEER, f"{PEER}@", "12D3bad@198.51.100.1:7702"])
def test_an_entry_that_is_none_is_named(text: str) -> None:
    with pytest.raises(NovaMeshError) as caught:
        parse_nodes(text)
    assert caught.value.code is Code.BAD_CONFIG
    assert "client.nodes" in caught.value.message
    assert "PEERID@HOST:PORT" in caught.value.hint
