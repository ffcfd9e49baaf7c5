"""A node is found at a broker as we deploy it, and asked: no coordinator runs, and no mesh."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from novamesh import Client, search, verify_file
from novamesh.config import load_config
from novamesh.keys import create_key
from novamesh_broker.flags import BrokerFlags
from novamesh_proto.broker import Broker
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.identity import format_node_id
from support.mosquitto import Mosquitto
from support.processes import RealPool

pytestmark = pytest.mark.timeout(180)
QUESTION = ("nova-pico", "What is 2 + 3?")


def flags(broker: Broker) -> list[str]:
    return [
        f"--mqtt={broker}", f"--mqtt-ca={broker.ca_file}",
        f"--mqtt-password-file={broker.password_file}",
    ]  # fmt: skip


def no_mesh(*_: object) -> None:
    raise NovaMeshError(Code.UNSUPPORTED, "libp2p is not installed")


async def test_a_client_finds_a_node_by_a_broker_and_by_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RealPool(tmp_path) as pool:
        peer = format_node_id(create_key(pool.home("nina") / "node.key").node_id)
        with Mosquitto(tmp_path / "mosquitto", {peer: "hers", "client": "ours"}) as mosquitto:
            ours = mosquitto.broker("client")
            pool.join()
            listening = ("--listen", "127.0.0.1:0", "--donate", *flags(mosquitto.broker(peer)))
            pool.start_node("nina", *listening)
            pool.coordinator.kill()
            said = json.loads(pool.cli("run", *QUESTION, "--mesh", "--json", *flags(ours)).stdout)
            assert said["node"] == peer
            assert said["parts"][0]["donated"]
            # The same again where libp2p, which may be installed here, cannot have helped.
            monkeypatch.setattr(search, "Mesh", no_mesh)
            where = BrokerFlags(str(ours), ours.password_file, ours.ca_file).flags()
            (pool.home("client") / "nodes.json").unlink()
            async with Client(config=load_config(pool.home("client"), flags=where)) as client:
                found = await client.complete(*QUESTION, mesh=True)
        # The broker is gone: of whoever was reached the address is known.
        async with Client(home=pool.home("client")) as client:
            known = await client.complete(*QUESTION, mesh=True)
        for done in (found, known):
            proof = verify_file(done.receipt_path)
            assert (format_node_id(proof.node), proof.donated) == (peer, True)
