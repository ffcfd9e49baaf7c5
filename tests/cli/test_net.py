"""`novamesh net check` enters a broker as a node does: `~` is a home, and files are read."""

from __future__ import annotations

import socket
from datetime import UTC, datetime
from pathlib import Path

import pytest

from novamesh.cli import net
from novamesh.cli.scope import Scope
from novamesh.config import Config
from novamesh_proto.transport_identity import make_certificate
from support.parties import NODE
from support.ports import free_port


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Settings of a client in a home of its own."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NOVAMESH_HOME", str(tmp_path / "novamesh"))
    return Scope().config()


async def test_files_in_the_home_are_found(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        where = f"mqtt://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("NOVAMESH_NODE_MQTT", where)
        monkeypatch.setenv("NOVAMESH_NODE_MQTT_PASSWORD_FILE", "~/password")
        address, trouble = await net._broker(config)
        assert address == "config.toml"
        assert "cannot use ~/password" in trouble
        (tmp_path / "password").write_text("ears\n")
        assert await net._broker(config) == (where, "")


async def test_an_authority_in_the_home_is_trusted_as_a_node_would(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = f"mqtts://127.0.0.1:{free_port()}"
    monkeypatch.setenv("NOVAMESH_NODE_MQTT", where)
    monkeypatch.setenv("NOVAMESH_NODE_MQTT_CA", "~/ca.pem")
    assert (await net._broker(config))[0] == "config.toml"
    made = make_certificate(NODE, datetime.now(UTC))
    (tmp_path / "ca.pem").write_bytes(made.certificate_pem)
    assert await net._broker(config) == (where, "Connection refused")
