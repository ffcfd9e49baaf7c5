"""Ten nodes without coordinator or bootstrap: they go on, take one back, and answer a client.

Two of them are real nodes that listen at no port for gRPC and serve the model that is asked for;
the other eight take part in the mesh as nodes do, each in a thread of its own, and serve another.
`benchmarks/mesh.py` measures how long things take.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from novamesh import verify_file
from novamesh.mesh.peer import TARGET
from novamesh.mesh.peers import PeerList
from novamesh_proto.identity import PrivateKey, parse_node_id
from novamesh_proto.messages import JobPath, NodeId
from support.mesh_nodes import MeshNode, bootstrap_node
from support.mesh_peers import until
from support.processes import NETWORK, RealPool

pytestmark = pytest.mark.timeout(300)
SERVING = ("nora", "omar")
OTHERS = 8
ELSEWHERE = "/ip4/192.0.2.9/tcp/4001"
NOBODY = PrivateKey.generate().node_id
ASKED_MAX = 4
PATIENCE_S = 120.0  # never a bar: a slow machine is no bug


@dataclass
class MeshPool(RealPool):
    """Its nodes and its client are in a mesh on loopback, and begin with `bootstrap`."""

    bootstrap: str = ""

    def environment(self, home: str) -> dict[str, str]:
        """As of every pool, and where the mesh begins."""
        mesh = {"LISTEN": "/ip4/127.0.0.1/tcp/0", "MDNS": "false", "BOOTSTRAP": self.bootstrap}
        told = {f"NOVAMESH_MESH_{key}": value for key, value in mesh.items()}
        return super().environment(home) | told

    def start_serving(self, name: str) -> NodeId:
        """A real node, which is reached through tunnels only."""
        return parse_node_id(self.start_node(name, "--mesh", "--donate").ready.split()[-1])

    def peers(self, name: str) -> int:
        """How many a real node says it is connected to."""
        status: dict[str, Any] = json.loads(self.cli("node", "status", "--json", home=name).stdout)
        return int(status["peers"])

    def ask(self) -> tuple[NodeId, Path]:
        """A client that was never in the mesh asks: who answered, and the receipt."""
        asked = ("run", "nova-pico", "What is 2 + 3?", "--mesh", "--json")
        for _ in range(ASKED_MAX - 1):  # who hears of nobody in 10 s asks again
            ran = self.cli(*asked, check=False, timeout_s=PATIENCE_S)
            if ran.returncode == 0:
                break
        else:
            ran = self.cli(*asked, timeout_s=PATIENCE_S)
        said = json.loads(ran.stdout)
        return parse_node_id(said["node"]), Path(said["receipt"])


@contextlib.asynccontextmanager
async def _ten(pool: MeshPool) -> AsyncIterator[tuple[list[MeshNode], set[NodeId]]]:
    """All of them, who knew of nobody but the bootstrap: the eight, and the names of the two."""
    starting = (asyncio.to_thread(pool.start_serving, name) for name in SERVING)
    serving = set(await asyncio.gather(*starting))
    async with contextlib.AsyncExitStack() as stack:
        others = [MeshNode(pool.root, NETWORK, pool.bootstrap) for _ in range(OTHERS)]
        for node in others:
            await stack.enter_async_context(node)
        names = serving | {node.node for node in others}
        await until(lambda: all(names <= node.known for node in others), PATIENCE_S)
        yield others, serving


async def _until_enough_peers(pool: MeshPool, others: list[MeshNode]) -> None:
    """Until each of the ten is connected to as many others as it keeps."""
    await until(lambda: all(node.peers >= TARGET for node in others), PATIENCE_S)
    async with asyncio.timeout(PATIENCE_S):
        for name in SERVING:
            while await asyncio.to_thread(pool.peers, name) < TARGET:  # noqa: ASYNC110
                await asyncio.sleep(0.2)


async def test_ten_nodes_go_on_and_answer_without_coordinator_and_bootstrap(tmp_path: Path) -> None:
    with MeshPool(tmp_path) as pool, bootstrap_node(tmp_path, NETWORK) as (boot, pool.bootstrap):
        pool.join()
        async with _ten(pool) as (others, serving):
            pool.coordinator.kill()
            boot.kill()
            speaker, entrance, *_, leaver = others
            pool.bootstrap = f"{pool.bootstrap},{entrance.addresses[0]}"  # nobody is at the first
            asking = asyncio.create_task(asyncio.to_thread(pool.ask))
            speaker.move(ELSEWHERE)
            hearing = [node for node in others if node is not speaker]
            await until(
                lambda: all(ELSEWHERE in n.knows(speaker.node) for n in hearing), PATIENCE_S
            )
            answered_by, receipt = await asking
            await leaver.leave()
            others.remove(leaver)
            async with MeshNode(pool.root, NETWORK, key=leaver.key) as back:  # it has its file only
                at, who = back.addresses[0].partition("/p2p/")[0], back.node
                await until(lambda: all(at in node.knows(who) for node in others), PATIENCE_S)
                await _until_enough_peers(pool, [*others, back])
        for name in SERVING:
            pool.daemons[name].stop()
            learnt = PeerList(pool.home(name) / "node" / "peers.json", NOBODY)
            assert ELSEWHERE in learnt.addresses(speaker.node)
    proof = verify_file(receipt)
    assert answered_by == proof.node
    assert proof.node in serving
    assert proof.donated
    assert proof.attestation is not None
    assert proof.client_receipt is not None
    assert proof.client_receipt.message.path is JobPath.TUNNEL
