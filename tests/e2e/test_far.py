"""A node behind its router: relayed by a near coordinator, through a tunnel where it is far."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from novamesh import Client, verify_file
from novamesh.completion import Completion
from novamesh.config import find_places, load_config, save_setting
from novamesh_proto.messages import JobPath
from support.far_away import far_away
from support.processes import RealPool

pytestmark = pytest.mark.timeout(180)
FAR_S = 0.15  # each way: another continent
PROMPT = "Write a long story about an owl and 12 apples."
# It takes longer than the way to the coordinator and back: until then nobody knows whom to ask.
ASKED: dict[str, Any] = {"max_tokens": 300, "ignore_eos": True}


@pytest.fixture(scope="module")
def hidden(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealPool]:
    """A pool whose one node listens at no port of its own for gRPC, and a client in its mesh."""
    with RealPool(tmp_path_factory.mktemp("hidden")) as pool:
        pool.join()
        for home in ("nora", "client"):
            _set_mesh(pool, home, listen="/ip4/127.0.0.1/tcp/0", mdns=False)
        node = pool.start_node("nora", "--mesh")
        pool.await_nodes(1)
        address = f"{_listens(pool)}/p2p/{node.ready.split()[-1]}"
        _set_mesh(pool, "client", bootstrap=address, on=True)
        yield pool


async def test_where_the_coordinator_is_near_the_answer_is_relayed(hidden: RealPool) -> None:
    async with _client(hidden, hidden.address) as client:
        await client._search.finder()  # the mesh is there
        done = await client.complete("nova-pico", PROMPT, **ASKED)
    assert _path(done) is JobPath.RELAYED


async def test_where_the_coordinator_is_far_answers_come_through_a_tunnel(hidden: RealPool) -> None:
    """They are relayed while the tunnel opens, and each one is settled, whichever way it came."""
    async with (
        far_away(hidden.address, FAR_S) as coordinator,
        _client(hidden, coordinator) as client,
        asyncio.timeout(120),
    ):
        path = JobPath.RELAYED
        while path is not JobPath.TUNNEL:
            done = await client.complete("nova-pico", PROMPT, **ASKED)
            path = _path(done)
            proof = verify_file(done.receipt_path)
            assert proof.settlement is not None
            assert not proof.donated


def _client(pool: RealPool, coordinator: str) -> Client:
    """One that finds the coordinator at that address."""
    config = load_config(pool.home("client"))
    assert config.pool is not None
    return Client(config=replace(config, pool=replace(config.pool, address=coordinator)))


def _path(done: Completion) -> JobPath:
    """Which way the receipt says that the answer came."""
    proof = verify_file(done.receipt_path)
    assert proof.client_receipt is not None
    return proof.client_receipt.message.path


def _set_mesh(pool: RealPool, home: str, **values: str | bool) -> None:
    for key, value in values.items():
        save_setting(find_places(pool.home(home)), "mesh", key, value)


def _listens(pool: RealPool) -> str:
    """Where the node's own status says that it is found in the mesh."""
    for _ in range(30):
        status = json.loads(pool.cli("node", "status", "--json", home="nora").stdout)
        found = [
            each for each in status["endpoints"] if re.match(r"/ip4/127\.0\.0\.1/tcp/\d+$", each)
        ]
        if found:
            return str(found[0])
    raise AssertionError("the node is not in the mesh")
