"""A node in the mesh: what it says there, whom it learns of, and that nothing there stops it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any

import pytest

from novamesh.mesh.config import MeshConfig
from novamesh_node import mesh_presence
from novamesh_node.clock import Clock
from novamesh_node.mesh_presence import ADDRESSES_MAX, MeshPresence, usable_addresses
from novamesh_proto import wire
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import Envelope, NodeId
from support.clock import START_MS
from support.fake_answer import NETWORK, PICO
from support.found_nodes import advert
from support.parties import NODE, party
from support.waiting import wait_until

OTHER = party("other")
MULTIADDRESS = "/ip4/192.0.2.7/tcp/4001"
US = "12D3KooWLhWHURiU3PYSGA17MzydSLrZ7mMjKtq4T6c4BUctvGLq"
RELAY = "12D3KooWNcx9tJ3F1L9hK521XUY2KpU3t8mMVmCycBqmPjCvTxso"


class FakeMesh:
    """A mesh in memory; the newest is `FakeMesh.here`."""

    here: FakeMesh | None = None
    refusal: NovaMeshError | None = None
    heard: tuple[bytes, ...] = ()

    def __init__(self, config: MeshConfig, check: Callable[[bytes], None]) -> None:
        self.check = check
        self.said: list[tuple[bytes, tuple[bytes, ...]]] = []
        self.learnt: dict[NodeId, tuple[str, ...]] = {}
        self.addresses = (f"/ip4/127.0.0.1/tcp/9/p2p/{US}", f"{MULTIADDRESS}/p2p/{US}")
        self.connections = 3

    async def __aenter__(self) -> FakeMesh:
        if self.refusal is not None:
            raise self.refusal
        FakeMesh.here = self
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        FakeMesh.here = None

    def publish(self, descriptor: bytes, profiles: tuple[bytes, ...]) -> None:
        self.said.append((descriptor, profiles))

    def learn(self, node: NodeId, addresses: tuple[str, ...]) -> None:
        self.learnt[node] = addresses

    async def descriptors(self) -> AsyncIterator[bytes]:
        for raw in self.heard:
            yield raw
        await asyncio.Event().wait()


@pytest.fixture(autouse=True)
def _in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mesh_presence, "Mesh", FakeMesh)
    monkeypatch.setattr(mesh_presence, "LOOK_S", 0.01)
    monkeypatch.setattr(FakeMesh, "refusal", None)
    monkeypatch.setattr(FakeMesh, "heard", ())


class Place:
    """A node's part in the mesh, and what came of it."""

    def __init__(self, tmp_path: Any) -> None:
        self.newest: Envelope | None = advert(NODE)
        self.told: list[tuple[str, ...]] = []
        config = MeshConfig(NODE, NETWORK, tmp_path / "peers.json")
        clock = Clock(wall_ms=lambda: START_MS)
        self.part = MeshPresence(config, self._current, self.told.append, clock)

    def _current(self) -> Envelope:
        if self.newest is None:
            raise NovaMeshError(Code.STORAGE, "the disk is full")
        return self.newest

    @contextlib.asynccontextmanager
    async def inside(self) -> AsyncIterator[FakeMesh]:
        task = asyncio.create_task(self.part.run())
        try:
            await wait_until(lambda: FakeMesh.here is not None)
            assert FakeMesh.here is not None
            yield FakeMesh.here
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def place(tmp_path: Any) -> Place:
    return Place(tmp_path)


async def test_every_newer_descriptor_is_said_once(place: Place) -> None:
    first, second = advert(NODE, sequence=1), advert(NODE, sequence=2)
    place.newest = first
    async with place.inside() as mesh:
        await wait_until(lambda: len(mesh.said) == 1)
        place.newest = None  # a full disk: what was said before still counts
        await asyncio.sleep(0.03)
        place.newest = second
        await wait_until(lambda: len(mesh.said) == 2)
        await asyncio.sleep(0.03)
        expected = [(wire.encode(each), (bytes(PICO),)) for each in (first, second)]
        assert mesh.said == expected


async def test_where_it_is_found_is_told_while_it_is_there(place: Place) -> None:
    assert place.part.peers == 0
    async with place.inside():
        await wait_until(lambda: bool(place.told))
        assert place.told[-1] == (MULTIADDRESS, "/ip4/127.0.0.1/tcp/9")
        assert place.part.peers == 3
    assert place.told[-1] == ()
    assert place.part.peers == 0


async def test_where_others_are_is_learnt_from_what_verifies_only(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = wire.encode(advert(OTHER, MULTIADDRESS, "192.0.2.7:7702"))
    bad = (b"\xff", wire.encode(advert(party("foreign"), MULTIADDRESS, network="elsewhere")))
    monkeypatch.setattr(FakeMesh, "heard", (*bad, good))
    async with place.inside() as mesh:
        await wait_until(lambda: bool(mesh.learnt))
        assert mesh.learnt == {OTHER.node_id: (MULTIADDRESS,)}
        mesh.check(good)
        for raw in bad:
            with pytest.raises(NovaMeshError):
                mesh.check(raw)


async def test_a_machine_that_cannot_take_part_works_on(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusal = NovaMeshError(Code.UNSUPPORTED, "libp2p is not installed", "install [p2p]")
    monkeypatch.setattr(FakeMesh, "refusal", refusal)
    await asyncio.wait_for(place.part.run(), 10)
    assert place.told == [()]


def test_addresses_are_told_without_our_name_and_the_near_ones_last() -> None:
    circuit = f"/ip4/192.0.2.9/tcp/1/p2p/{RELAY}/p2p-circuit"
    given = (
        f"/ip4/127.0.0.1/tcp/1/p2p/{US}",
        f"{MULTIADDRESS}/p2p/{US}",
        f"{MULTIADDRESS}/p2p/{US}",
        f"{circuit}/p2p/{US}",
        f"/dns4/{'x' * 200}/tcp/1/p2p/{US}",
    )
    assert usable_addresses(given) == (MULTIADDRESS, circuit, "/ip4/127.0.0.1/tcp/1")
    many = tuple(f"/ip4/192.0.2.{n}/tcp/1/p2p/{US}" for n in range(30))
    assert len(usable_addresses(many)) == ADDRESSES_MAX
