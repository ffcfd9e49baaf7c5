"""The thread of a node's mesh crashes while the node works: the answer does not notice."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from novamesh.mesh.mesh import Mesh
from novamesh_node import mesh_presence
from novamesh_node.config import load_node_config
from novamesh_proto import envelope
from novamesh_proto.attestation import Witness, check_attestation, findings
from novamesh_proto.join_code import format_join_code
from novamesh_proto.messages import InferenceAttestation, JoinCode
from support.fake_coordinator import coordinator
from support.mesh_nodes import MeshNode
from support.mesh_peers import until
from support.outage_pool import MODEL, write_long_model
from support.parties import COORDINATOR, NETWORK
from support.running_node import job, node

TOKENS = 3000  # an answer that lasts longer than a crash and what follows it
CRASHES = 2
MESH = {"NOVAMESH_MESH_LISTEN": "/ip4/127.0.0.1/tcp/0", "NOVAMESH_MESH_MDNS": "false"}


@pytest.fixture
def meshes(monkeypatch: pytest.MonkeyPatch) -> list[Mesh]:
    """The meshes that nodes of this process take part in."""
    noted: list[Mesh] = []

    class Noted(Mesh):
        async def __aenter__(self) -> Mesh:
            noted.append(self)
            return await super().__aenter__()

    monkeypatch.setattr(mesh_presence, "Mesh", Noted)
    return noted


async def _fail() -> None:
    raise OSError("a fault of the library")


async def test_an_answer_outlives_crashes_of_the_mesh(
    tmp_path: Path, meshes: list[Mesh], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "novamesh.mesh")
    write_long_model(tmp_path / MODEL)
    async with coordinator() as pool:
        code = format_join_code(JoinCode(pool.address, COORDINATOR.node_id, NETWORK, b"invite"))
        flags = {"models": str(tmp_path / MODEL), "threads": 1, "slots": 2}
        config = load_node_config(tmp_path / "home", MESH, flags, code, mesh=True)
        async with node(config) as made:
            await made.ready()
            at = await pool.next()
            [mesh] = meshes
            await until(lambda: mesh.addresses)
            async with MeshNode(tmp_path, NETWORK, *mesh.addresses) as neighbour:
                await until(lambda: mesh._peers.addresses(neighbour.node))
                work = job(at, TOKENS)
                await at.say(assignment=work.offer)
                messages = await at.until("chunk")
                for crash in range(1, CRASHES + 1):
                    mesh._supervisor.send(lambda peer: peer._nursery.start_soon(_fail))
                    await until(lambda crash=crash: mesh.restarts == crash and mesh.addresses)
                assert (await made.ask("status"))["phase"] == "working", "too short an answer"
                # It came back at another port, and gossip tells where.
                where = {address.partition("/p2p/")[0] for address in mesh.addresses}
                us = at.descriptor.issuer
                await until(lambda: where & set(neighbour.knows(us)) and mesh.connections)
                messages += await at.until("attestation")
    assert sum(len(each.token_ids) for each in work.read(messages)) == TOKENS
    claim = envelope.open(messages[-1].attestation, InferenceAttestation, network=NETWORK)
    said = check_attestation(claim, work.terms, work.assignment)
    assert findings(said, Witness()) == ()
    stops = [line for line in caplog.messages if line.startswith("mesh stopped")]
    fault = "mesh stopped (OSError: a fault of the library), starts again in"
    assert stops == [f"{fault} 0.2 s", f"{fault} 0.4 s"]
