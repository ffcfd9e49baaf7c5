"""Places, the pool table, and what is refused in config.toml."""

from __future__ import annotations

from pathlib import Path

import pytest

from novamesh.config import (
    Pool,
    find_places,
    forget_pool,
    load_config,
    load_pool,
    save_pool,
    save_setting,
)
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.identity import PrivateKey, format_node_id
from novamesh_proto.messages import JoinCode

KEY = PrivateKey.from_bytes(bytes(range(32)))
POOL = Pool.from_join_code(JoinCode("127.0.0.1:7700", KEY.node_id, "hackspace", b"\x01\x02"))


def test_home_variable_overrides_every_place(tmp_path: Path) -> None:
    places = find_places(env={"NOVAMESH_HOME": str(tmp_path)})
    assert places.config_file == tmp_path / "config.toml"
    assert places.client_key == tmp_path / "client.key"
    assert places.node_key == tmp_path / "node.key"
    assert places.receipts == tmp_path / "receipts"
    assert places.jobs == tmp_path / "jobs"
    assert places.node == tmp_path / "node"
    assert places.coordinator == tmp_path / "coordinator"
    assert places.models == tmp_path / "cache" / "models"
    assert places.kernels == tmp_path / "cache" / "kernels"
    assert places.node_socket == tmp_path / "run" / "node.sock"
    assert find_places(tmp_path / "flag", {"NOVAMESH_HOME": "/else"}).data == tmp_path / "flag"


@pytest.mark.parametrize("home", [None, Path("~nosuchuser/here")])
def test_home_of_nobody_is_refused(home: Path | None) -> None:
    with pytest.raises(NovaMeshError, match="has the home folder '~nosuchuser'") as caught:
        find_places(home, {"NOVAMESH_HOME": "~nosuchuser/x"})
    assert caught.value.code is Code.BAD_CONFIG
    assert "--home" in caught.value.hint


def test_without_it_the_platform_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    places = find_places(env={})
    assert places.config_file == tmp_path / "config" / "novamesh" / "config.toml"
    assert places.client_key == tmp_path / "data" / "novamesh" / "client.key"
    assert places.runtime == tmp_path / "data" / "novamesh" / "run"
    assert find_places(env={"XDG_RUNTIME_DIR": "/run/me"}).runtime == Path("/run/me/novamesh")


def test_pool_is_saved_loaded_and_forgotten(tmp_path: Path) -> None:
    places = find_places(tmp_path)
    assert load_pool(places, {}) is None
    places.config_file.write_text("[client]\nmax_tokens = 7  # few\n")
    save_pool(places, POOL)
    config = load_config(tmp_path, {})
    assert config.require_pool() == POOL
    assert config.pool is not None
    assert config.pool.coordinator_id == KEY.node_id
    assert config.pool.invite_bytes == b"\x01\x02"
    assert config.client.max_tokens == 7
    assert "# few" in places.config_file.read_text()
    assert forget_pool(places)
    assert not forget_pool(places)
    assert load_config(tmp_path, {}).pool is None


def test_layers(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[client]\nmax_tokens = 7\ndeadline_s = 30\n")
    env = {"NOVAMESH_CLIENT_MAX_TOKENS": "8"}
    assert load_config(tmp_path, env).client.max_tokens == 8
    assert load_config(tmp_path, env, {"max_tokens": 9}).client.max_tokens == 9
    assert load_config(tmp_path, env).client.deadline_s == 30
    env = {f"NOVAMESH_POOL_{k.upper()}": getattr(POOL, k) for k in ("address", "coordinator")}
    pool = load_config(tmp_path, {**env, "NOVAMESH_POOL_NETWORK": "n"}).require_pool()
    assert (pool.address, pool.network) == (POOL.address, "n")


def test_no_pool_says_how_to_join(tmp_path: Path) -> None:
    with pytest.raises(NovaMeshError) as caught:
        load_config(tmp_path, {}).require_pool()
    assert caught.value.code is Code.BAD_CONFIG
    assert "novamesh pool join CODE" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[client", "is not TOML"),
        ("[cleint]\n", "unknown key 'cleint'"),
        ("deadline_s = 3\n", "unknown key 'deadline_s'"),
        ("[client]\ndeadline = 3\n", "unknown key 'deadline' in [client]"),
        ("[client]\ndeadline_s = 0\n", "client.deadline_s"),
        ('[pool]\naddress = "h:1"\n', "lacks coordinator, network"),
        ('[pool]\naddress = "h:1"\ncoordinator = "x"\nnetwork = "n"\n', "PeerId"),
        ('[pool]\naddres = "h:1"\n', "unknown key 'addres'"),
    ],
)
def test_bad_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(NovaMeshError) as caught:
        load_config(tmp_path, {})
    assert message in caught.value.message
    assert caught.value.hint


def test_unreadable_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(NovaMeshError, match="cannot read"):
        load_config(tmp_path, {})
    (tmp_path / "config.toml").write_bytes(b"#" * (1 << 21))
    with pytest.raises(NovaMeshError, match="more than"):
        load_config(tmp_path, {})


def test_invite_that_is_no_hexadecimal_is_refused() -> None:
    with pytest.raises(NovaMeshError, match="hexadecimal"):
        _ = Pool("h:1", format_node_id(KEY.node_id), "n", "zz").invite_bytes


def test_setting_is_saved(tmp_path: Path) -> None:
    places = find_places(tmp_path)
    save_setting(places, "client", "max_tokens", 12)
    assert load_config(tmp_path, {}).client.max_tokens == 12
