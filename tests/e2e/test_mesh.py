"""Without a coordinator or an open port: nodes are found by gossip and reached by a tunnel."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from novamesh import verify_file
from novamesh_proto.messages import JobPath
from support.processes import RealPool

pytestmark = pytest.mark.timeout(180)


def test_a_client_finds_a_model_by_gossip_and_is_answered_through_a_tunnel(tmp_path: Path) -> None:
    """The node listens at no port of its own for gRPC; the coordinator is dead."""
    with RealPool(tmp_path) as pool:
        pool.join()
        for key, value in (("listen", "/ip4/127.0.0.1/tcp/0"), ("mdns", "false")):
            pool.cli("config", "set", f"mesh.{key}", value, home="nora")
            pool.cli("config", "set", f"mesh.{key}", value)
        node = pool.start_node("nora", "--mesh", "--donate")
        pool.await_nodes(1)
        address = _listens(pool)
        peer = node.ready.split()[-1]
        pool.cli("config", "set", "mesh.bootstrap", f"{address}/p2p/{peer}")
        pool.coordinator.kill()
        said = json.loads(pool.cli("run", "nova-pico", "What is 2 + 3?", "--mesh", "--json").stdout)
    assert said["node"] == peer
    proof = verify_file(Path(said["receipt"]))
    assert proof.donated
    assert proof.client_receipt is not None
    assert proof.client_receipt.message.path is JobPath.TUNNEL


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
