"""Configuration: flag > env > file > default, and what is wrong is named."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from novamesh_coordinator.config import (
    CoordinatorConfig,
    Folder,
    PostgresUrl,
    check_dialled,
    find_database,
    find_folder,
    is_wildcard,
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
        ("address = '0.0.0.0:7700'", {}, "address is '0.0.0.0:7700', which nobody can dial"),
        ("", {"NOVAMESH_COORDINATOR_ADDRESS": "[::]:1"}, "address is '[::]:1', which nobody can"),
        (f"network = '{'n' * 65}'", {}, "has 65 bytes, at most 64"),
        (f"network = '{'é' * 33}'", {}, "has 66 bytes"),
        ('network = "a\\u0007b"', {}, "characters that cannot be seen"),
        ('network = " "', {}, "characters that cannot be seen"),
        ("log_format = 'xml'", {}, "log_format is 'xml'"),
        ("= broken", {}, "is not TOML"),
        ("address = 'a:1,b:2,c:3,d:4,e:5'", {}, "address names 5 addresses, at most 4"),
        ("address = 'a:1,b'", {}, "address is 'b', not HOST:PORT"),
        ("database = 'postgresql+psycopg://me:secret@db/pool'", {}, "has a password in it"),
        ("database = 'postgresql+psycopg://me@db/pool?password=x'", {}, "has a password in it"),
        ("database = 'postgresql+psycopg://db'", {}, "no URL of a PostgreSQL database"),
        ("database = 'postgresql+psycopg://db:x/pool'", {}, "no URL of a PostgreSQL database"),
        ("", {"NOVAMESH_COORDINATOR_DATABASE": "mysql://db/pool"}, "no URL of a PostgreSQL"),
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


@given(
    st.text(max_size=16).filter(lambda text: text.isprintable() and text == text.strip()),
    st.sampled_from(["", "pool.example.org:7700"]),
    st.booleans(),
)
def test_every_name_that_is_allowed_reads_back(name: str, address: str, anybody: bool) -> None:
    config = CoordinatorConfig(network=name, address=address, open=anybody)
    assert CoordinatorConfig(**tomllib.loads(write_config(config))) == config


@pytest.mark.parametrize("name", ["it's", 'a"b', "back\\slash", "naïve 池", "#", "a]b = 1"])
def test_awkward_names_are_written_as_they_are(folder: Folder, name: str) -> None:
    config = load_config(folder, {"network": name}, {})
    folder.config.write_text(write_config(config), encoding="utf-8")
    assert load_config(folder, {}, {}).network == name


def test_a_name_that_is_no_text_is_refused(folder: Folder) -> None:
    with pytest.raises(NovaMeshError, match="cannot be seen"):
        load_config(folder, {"network": os.fsdecode(b"caf\xe9")}, {})


@pytest.mark.parametrize("host", ["0.0.0.0", "0", "[::]", "[0:0:0:0:0:0:0:0]"])
def test_a_wildcard_is_listened_on_and_never_dialled(host: str) -> None:
    assert is_wildcard(f"{host}:7700")
    with pytest.raises(NovaMeshError, match="nobody can dial"):
        check_dialled(f"{host}:7700", "address")


@pytest.mark.parametrize("host", ["127.0.0.1", "10.0.0.0", "[::1]", "pool0", "0x.example"])
def test_an_address_is_dialled(host: str) -> None:
    assert not is_wildcard(f"{host}:7700")
    check_dialled(f"{host}:7700", "address")
    with pytest.raises(NovaMeshError, match="nobody can dial"):
        check_dialled(f"{host}:0", "address")


def test_the_log_is_a_file_unless_a_server_is_named(folder: Folder, tmp_path: Path) -> None:
    assert find_database(folder, load_config(folder, {}, {})) == folder.database
    url = "postgresql+psycopg://nova@/pool?host=/run/postgresql"
    named = {"NOVAMESH_COORDINATOR_DATABASE": url}
    assert find_database(folder, load_config(folder, {}, named)) == PostgresUrl(url)
    secret = tmp_path / "secret"
    secret.write_text("it's secret\n")
    flags = {"database": url, "database_password_file": str(secret)}
    found = find_database(folder, load_config(folder, flags, {}))
    assert found == PostgresUrl(url, "it's secret")
    assert "secret" not in repr(found)


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_password_that_cannot_be_read_is_told(folder: Folder, content: bytes | None) -> None:
    path = folder.path / "password"
    if content is not None:
        path.write_bytes(content)
    flags = {"database": "postgresql+psycopg://h/d", "database_password_file": str(path)}
    with pytest.raises(NovaMeshError, match="password in") as refused:
        find_database(folder, load_config(folder, flags, {}))
    assert refused.value.code is Code.BAD_CONFIG
    assert "--database-password-file" in refused.value.hint


def test_several_addresses_are_dialled_each() -> None:
    check_dialled("a.example:7700,b.example:7700", "address")
    with pytest.raises(NovaMeshError, match="nobody can dial"):
        check_dialled("a.example:7700,0.0.0.0:7700", "address")


def test_the_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_folder(tmp_path, {}).path == tmp_path / "coordinator"
    env = {"NOVAMESH_HOME": str(tmp_path / "x")}
    assert find_folder(None, env).database == tmp_path / "x/coordinator/coordinator.db"
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert find_folder(None, {}).path == tmp_path / "data/novamesh/coordinator"


@pytest.mark.parametrize("home", [None, Path("~nosuchuser/here")])
def test_the_folder_of_nobody_is_refused(home: Path | None) -> None:
    with pytest.raises(NovaMeshError, match="has the home folder '~nosuchuser'") as caught:
        find_folder(home, {"NOVAMESH_HOME": "~nosuchuser/x"})
    assert caught.value.code is Code.BAD_CONFIG
    assert "--home" in caught.value.hint


def test_addresses_split() -> None:
    assert split_address("[::1]:7", "x") == ("[::1]", 7)
    assert split_address("example.org:65535", "x") == ("example.org", 65_535)


def test_a_config_that_cannot_be_read_is_named(folder: Folder) -> None:
    folder.config.mkdir()
    with pytest.raises(NovaMeshError) as refused:
        load_config(folder, {}, {})
    assert refused.value.code is Code.STORAGE
