"""A node that nobody can dial, reached through a public peer."""

from __future__ import annotations

from pathlib import Path

import grpc.aio
import pytest

from novamesh.mesh import peer as peer_module
from novamesh.mesh.relay import is_circuit
from support.echo_server import echo_server
from support.mesh_peers import Attendee, mesh_config, until


async def test_tunnel_goes_through_a_relay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_module, "_RELAY_ROUNDS", 4)
    socket = tmp_path / "n"
    async with (
        echo_server(socket),
        Attendee(mesh_config(tmp_path, relay=True)) as relay,
        # It listens nowhere, so a circuit is the only way to it.
        Attendee(
            mesh_config(tmp_path, relay.mesh.addresses, listen=(), serve_socket=socket)
        ) as node,
        Attendee(mesh_config(tmp_path, relay.mesh.addresses)) as client,
    ):
        await until(lambda: any(map(is_circuit, node.mesh.addresses)))
        node.say()
        await until(lambda: client.knows(node))
        addresses = client.heard[node.node].addresses
        assert all(map(is_circuit, addresses))
        async with (
            client.mesh.open_tunnel(node.node, addresses) as address,
            grpc.aio.insecure_channel(address) as channel,
        ):
            ask = channel.unary_unary("/test/Ask")
            for question in (b"one", b"x" * 100_000):
                assert await ask(question, timeout=60) == question


async def test_private_pool_has_no_circuits(tmp_path: Path) -> None:
    psk = bytes(32)
    async with (
        Attendee(mesh_config(tmp_path, relay=True, psk=psk)) as relay,
        Attendee(
            mesh_config(tmp_path, relay.mesh.addresses, psk=psk, serve_socket=tmp_path / "n")
        ) as node,
    ):
        node.say()
        await until(lambda: relay.knows(node))
        assert not any(map(is_circuit, node.mesh.addresses))
