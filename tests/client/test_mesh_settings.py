"""`[mesh]`: off until somebody turns it on; a private pool's key is read from its own file."""

from __future__ import annotations

from pathlib import Path

import pytest

from novamesh.config import Places
from novamesh.mesh_settings import MeshSettings, load_mesh_settings, mesh_config
from novamesh_proto.errors import Code, NovaMeshError
from support.parties import CLIENT, NETWORK


def places(folder: Path, text: str = "") -> Places:
    (folder / "config.toml").write_text(text)
    return Places(folder, folder, folder, folder)


def test_nothing_is_on_by_default_and_nobody_elses_peers_are_asked(tmp_path: Path) -> None:
    chosen = load_mesh_settings(places(tmp_path), env={})
    assert (chosen.on, chosen.bootstrap, chosen.key_file, chosen.relay) == (False, "", "", False)
    made = mesh_config(chosen, NETWORK, CLIENT, tmp_path / "peers.json")
    assert (made.bootstrap, made.psk, made.serve_socket) == ((), None, None)
    assert made.network == NETWORK


def test_file_environment_and_flags(tmp_path: Path) -> None:
    peers = "/ip4/198.51.100.1/tcp/1/p2p/A, /ip4/198.51.100.2/tcp/1/p2p/B,"
    table = f'[mesh]\non = true\nbootstrap = "{peers}"'
    chosen = load_mesh_settings(
        places(tmp_path, table), env={"NOVAMESH_MESH_RELAY": "true"}, flags={"mdns": False}
    )
    assert (chosen.on, chosen.relay, chosen.mdns) == (True, True, False)
    made = mesh_config(chosen, NETWORK, CLIENT, tmp_path / "p", tmp_path / "s")
    assert made.bootstrap == ("/ip4/198.51.100.1/tcp/1/p2p/A", "/ip4/198.51.100.2/tcp/1/p2p/B")
    assert (made.relay, made.mdns, made.serve_socket) == (True, False, tmp_path / "s")


def test_a_private_pools_key_is_one_line_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("ab" * 32 + "\n")
    file.chmod(0o600)
    chosen = MeshSettings(key_file=str(file))
    assert mesh_config(chosen, NETWORK, CLIENT, tmp_path / "p").psk == b"\xab" * 32


@pytest.mark.parametrize("text", ["", "ab" * 31, "ab" * 33, "zz" * 32])
def test_what_is_no_key_is_said_and_never_shown(tmp_path: Path, text: str) -> None:
    file = tmp_path / "key"
    file.write_text(text)
    file.chmod(0o600)
    with pytest.raises(NovaMeshError) as caught:
        mesh_config(MeshSettings(key_file=str(file)), NETWORK, CLIENT, tmp_path / "p")
    assert caught.value.code is Code.BAD_CONFIG
    assert not text or text not in str(caught.value)


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("ab" * 32)
    file.chmod(0o644)
    with pytest.raises(NovaMeshError) as caught:
        mesh_config(MeshSettings(key_file=str(file)), NETWORK, CLIENT, tmp_path / "p")
    assert caught.value.code is Code.BAD_KEY
