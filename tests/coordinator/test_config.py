"""Configuration: flag > env > file > default, and what is wrong is named."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from novamesh_coordinator.config import (
    CoordinatorConfig,
    Folder,
    find_folder,
    load_config,
    split_address,
    write_config,
)
from novamesh_proto.errors import Code, NovaMeshError


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    found = find_folder(tmp_path)
    found.path.mkdir()
    return found


def test_defaults_are_on_loopback(folder: Folder) -> None:
    config = load_config(folder, env={})
    assert (config.listen, config.http, config.open) == ("127.0.0.1:7700", "127.0.0.1:7701", False)


def test_the_nearer_source_wins(folder: Folder) -> None:
    folder.config.write_text('network = "lab"\nlisten = "127.0.0.1:1"\nhttp = ""\nopen = true\n')
    env = {"NOVAMESH_COORDINATOR_LISTEN": "127.0.0.1:2", "NOVAMESH_COORDINATOR_RPCS_MAX": "64"}
    config = load_config(folder, {"listen": "127.0.0.1:3", "http": None}, env)
    assert config == CoordinatorConfig("lab", "127.0.0.1:3", "", "", True, 64)
    assert load_config(folder, {}, env).listen == "127.0.0.1:2"
    assert load_config(folder, {}, {"NOVAMESH_COORDINATOR_OPEN": "false"}).open is False


@pytest.mark.parametrize(
    ("file", "env", "said"),
    [
        ("lisen = 1", {}, "sets 'lisen', which is no option"),
        ("listen = 1", {}, "listen is 1, not a str"),
        ("open = 'yes'", {}, "open is 'yes', not a bool"),
        ("rpcs_max = 1", {}, "rpcs_max is 1, allowed is 16 to 65536"),
        ("requests_per_s = 0", {}, "requests_per_s is 0"),
        ("listen = 'localhost'", {}, "listen is 'localhost', not HOST:PORT"),
        ("address = 'a:99999'", {}, "address is 'a:99999'"),
        ("http = 'x'", {}, "http is 'x'"),
        (f"network = '{'n' * 65}'", {}, "more than 64 bytes"),
        ("= broken", {}, "is not TOML"),
        ("", {"NOVAMESH_COORDINATOR_PORT": "1"}, "NOVAMESH_COORDINATOR_PORT sets 'port'"),
        ("", {"NOVAMESH_COORDINATOR_RPCS_MAX": "many"}, "rpcs_max is 'many', not a int"),
    ],
)
def test_what_is_wrong_is_named(folder: Folder, file: str, env: dict[str, str], said: str) -> None:
    folder.config.write_text(file)
    with pytest.raises(NovaMeshError) as refused:
        load_config(folder, {}, env)
    assert refused.value.code is Code.BAD_CONFIG
    assert said in refused.value.message
    assert refused.value.hint


def test_what_init_writes_reads_back(folder: Folder) -> None:
    config = CoordinatorConfig(network="our lab", open=True, listen="[::1]:0", rpcs_max=99)
    folder.config.write_text(write_config(config))
    assert load_config(folder, {}, {}) == config
    assert set(tomllib.loads(folder.config.read_text())) == {
        "network",
        "open",
        "listen",
        "rpcs_max",
    }


def test_the_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_folder(tmp_path, {}).path == tmp_path / "coordinator"
    env = {"NOVAMESH_HOME": str(tmp_path / "x")}
    assert find_folder(None, env).database == tmp_path / "x/coordinator/coordinator.db"
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert find_folder(None, {}).path == tmp_path / "data/novamesh/coordinator"


def test_addresses_split() -> None:
    assert split_address("[::1]:7", "x") == ("[::1]", 7)
    assert split_address("example.org:65535", "x") == ("example.org", 65_535)


def test_a_config_that_cannot_be_read_is_named(folder: Folder) -> None:
    folder.config.mkdir()
    with pytest.raises(NovaMeshError) as refused:
        load_config(folder, {}, {})
    assert refused.value.code is Code.STORAGE
