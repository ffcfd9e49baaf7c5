"""What of a node is open, by its owner's choice, and that it is told and closed again."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from novamesh.mesh_settings import MeshSettings
from novamesh_node import reach
from novamesh_node.config import NodeConfig, load_node_config
from novamesh_node.descriptor import FULL_RENEW_MS
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.join_code import format_join_code
from support.fake_pool import FakePool
from support.own_front import open_front
from support.parties import NODE
from support.waiting import wait_until
from support.working_desk import CLOCK

ROUTER = "198.51.100.4:7702"


@pytest.fixture
def config(tmp_path: Path) -> NodeConfig:
    """A node that opens nothing."""
    pool = FakePool()
    pool.address = "127.0.0.1:7700"
    (tmp_path / "home").mkdir()
    return load_node_config(tmp_path / "home", env={}, join=format_join_code(pool.join_code))


class FakeMeshPresence:
    """A part in a mesh that is at work until it is ended."""

    made: FakeMeshPresence | None = None

    def __init__(self, config: Any, current: Any, listen_at: Any, clock: Any) -> None:
        self.config = config
        self.listen_at = listen_at
        self.at_work = False
        self.peers = 2
        FakeMeshPresence.made = self

    async def run(self) -> None:
        self.at_work = True
        try:
            await asyncio.Event().wait()
        finally:
            self.at_work = False


@pytest.fixture(autouse=True)
def _in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.asynccontextmanager
    async def mapped(port: int, moved: Callable[[str | None], None]) -> AsyncIterator[str | None]:
        yield ROUTER
        moved(None)

    monkeypatch.setattr(reach.port_map, "mapped", mapped)
    monkeypatch.setattr(reach, "MeshPresence", FakeMeshPresence)


@contextlib.asynccontextmanager
async def reached(
    folder: Path, config: NodeConfig
) -> AsyncIterator[tuple[reach.Reach, list[tuple[str, str]]]]:
    said: list[tuple[str, str]] = []

    def say(word: str, text: str) -> None:
        said.append((word, text))

    async with open_front(folder) as counter:
        source = counter.node.offers.source
        async with reach.opened(config, NODE, counter.front, source, CLOCK, say) as made:
            yield made, said


async def test_nothing_is_open_by_default(tmp_path: Path, config: NodeConfig) -> None:
    async with reached(tmp_path, config) as (made, said):
        assert made.told() == {"endpoints": []}
        assert said == []


async def test_where_it_listens_is_told_to_people_and_in_the_descriptor(
    tmp_path: Path, config: NodeConfig
) -> None:
    config = replace(config, listen="127.0.0.1:0")
    async with reached(tmp_path, config) as (made, said):
        (endpoint,) = made.advertiser.endpoints
        assert endpoint.startswith("127.0.0.1:")
        assert said == [("listens", f"at {endpoint}, clients are told {endpoint}")]
        host, _, port = endpoint.rpartition(":")
        with socket.create_connection((host, int(port)), 5):
            pass
    with pytest.raises(OSError, match="refused"), socket.create_connection((host, int(port)), 5):
        pass


async def test_the_owner_says_what_clients_are_told(tmp_path: Path, config: NodeConfig) -> None:
    config = replace(config, listen="127.0.0.1:0", endpoint="node.example:443", map_port=True)
    async with reached(tmp_path, config) as (made, said):
        assert made.told()["endpoints"] == ["node.example:443", ROUTER]
        assert said[-1] == ("router", f"passes {ROUTER} on to this node")
    assert made.told()["endpoints"] == ["node.example:443"], "the router passes nothing on any more"


async def test_a_machine_that_wakes_up_elsewhere_tells_its_new_address(
    tmp_path: Path, config: NodeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = "192.0.2.7"

    def endpoint_of(host: str, port: int, pool: str, before: str = "") -> str:
        return f"{own}:{port}" if own else before

    monkeypatch.setattr(reach, "ANYWHERE", {"127.0.0.1"})
    monkeypatch.setattr(reach, "ADDRESS_S", 0.0)
    monkeypatch.setattr(reach, "endpoint_of", endpoint_of)
    async with reached(tmp_path, replace(config, listen="127.0.0.1:0")) as (made, said):
        (before,) = made.advertiser.endpoints
        later_ms = CLOCK.wall_ms() + FULL_RENEW_MS
        made.advertiser.renew(later_ms - 1)
        assert not made.advertiser.due(later_ms)
        own = ""  # asleep: no network
        for _ in range(20):
            await asyncio.sleep(0.005)
        assert made.advertiser.endpoints == (before,)
        own = "198.51.100.9"
        await wait_until(lambda: made.advertiser.endpoints != (before,))
        now = f"{own}:{before.rpartition(':')[2]}"
        assert made.told()["endpoints"] == [now]
        assert said[-1] == ("moved", f"clients are told {now} from now on")
        assert made.advertiser.due(later_ms + FULL_RENEW_MS)


def test_leaving_does_not_wait_for_a_name_server(
    tmp_path: Path, config: NodeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    looking, answers = threading.Event(), threading.Event()
    own = reach.endpoint_of

    def endpoint_of(host: str, port: int, pool: str, before: str = "") -> str:
        if before:
            looking.set()
            answers.wait(60)
        return own(host, port, pool, before)

    async def leave() -> None:
        async with reached(tmp_path, replace(config, listen="127.0.0.1:0")):
            await wait_until(looking.is_set)

    monkeypatch.setattr(reach, "ANYWHERE", {"127.0.0.1"})
    monkeypatch.setattr(reach, "ADDRESS_S", 0.0)
    monkeypatch.setattr(reach, "endpoint_of", endpoint_of)
    asyncio.run(leave())
    (still,) = (one for one in threading.enumerate() if one.name == "endpoint")
    answers.set()
    still.join(10)


async def test_an_address_that_its_owner_names_stays(
    tmp_path: Path, config: NodeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reach, "ANYWHERE", {"127.0.0.1"})
    monkeypatch.setattr(reach, "ADDRESS_S", 0.0)
    config = replace(config, listen="127.0.0.1:0", endpoint="node.example:443")
    async with reached(tmp_path, config) as (made, said):
        for _ in range(20):
            await asyncio.sleep(0.005)
        assert made.told()["endpoints"] == ["node.example:443"]
        assert len(said) == 1


async def test_tunnels_end_at_a_socket_of_this_user(tmp_path: Path, config: NodeConfig) -> None:
    config = replace(config, mesh=MeshSettings(on=True, mdns=False))
    async with reached(tmp_path, config) as (made, _):
        part = FakeMeshPresence.made
        assert part is not None
        await asyncio.sleep(0)
        end = part.config.serve_socket
        assert end.is_socket()
        assert end.parent.stat().st_mode & 0o777 == 0o700
        assert part.at_work
        part.listen_at(("/ip4/192.0.2.7/tcp/1",))
        assert made.told() == {"endpoints": ["/ip4/192.0.2.7/tcp/1"], "peers": 2}
    assert not part.at_work
    assert not end.parent.exists()


async def test_a_port_that_is_taken_opens_nothing(tmp_path: Path, config: NodeConfig) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        config = replace(config, listen=f"127.0.0.1:{taken.getsockname()[1]}")
        async with open_front(tmp_path) as counter:
            source = counter.node.offers.source
            with pytest.raises(NovaMeshError) as caught:
                async with reach.opened(config, NODE, counter.front, source, CLOCK, print):
                    raise AssertionError("two listen at one port")
    assert caught.value.code is Code.CONFLICT
