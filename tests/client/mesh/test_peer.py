"""One peer's upkeep: enough connections, and those who no longer answer are dropped."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from novamesh.mesh import peer as peer_module
from novamesh.mesh.host import peer_in
from novamesh.mesh.peers import PEERS_MAX
from novamesh_proto.identity import PrivateKey
from support.mesh_peers import Attendee, alone, mesh_config, until


async def test_frozen_peer_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_ANSWER_S", "_ASK_EVERY_S"):
        monkeypatch.setattr(peer_module, name, 0.5)
    async with (
        alone(tmp_path) as (child, where),
        Attendee(mesh_config(tmp_path, where)) as watcher,
    ):
        await until(lambda: watcher.mesh.connections == 1)
        await until(lambda: peer_in(where[0])[0] in watcher.heard)
        child.send_signal(signal.SIGSTOP)
        await until(lambda: watcher.mesh.connections == 0)


async def test_bootstrap_is_not_pushed_out_by_a_crowd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer_module, "_SAVE_ROUNDS", 3)
    boot = PrivateKey.generate().node_id
    dead = "/ip4/127.0.0.1/tcp/1"
    config = mesh_config(tmp_path, (f"{dead}/p2p/{peer_module.peer_of(boot)}",))
    async with Attendee(config) as crowded:
        for _ in range(PEERS_MAX + 1):
            crowded.mesh.learn(PrivateKey.generate().node_id, (dead,))
        assert crowded.mesh._peers.addresses(boot) == ()
        await until(lambda: crowded.mesh._peers.addresses(boot))
        await until(lambda: config.peers_file.exists())
