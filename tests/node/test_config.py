"""Configuration: what wins, what is refused, and how one gets into a pool."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from novamesh_node.config import NodeConfig, load_node_config
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.identity import format_node_id
from novamesh_proto.join_code import format_join_code
from novamesh_proto.messages import JoinCode
from support.parties import CLIENT, COORDINATOR, NETWORK

CODE = format_join_code(JoinCode("127.0.0.1:7700", COORDINATOR.node_id, NETWORK, b"invite"))
POOL = f"""
[pool]
address = "pool.example.org:7700"
coordinator = "{format_node_id(COORDINATOR.node_id)}"
network = "{NETWORK}"
invite = "00ff"
"""


def load(home: Path, text: str = POOL, **how: Any) -> NodeConfig:
    (home / "config.toml").write_text(text)
    return load_node_config(home, how.pop("env", {}), how.pop("flags", None), **how)


def refused(*arguments: Any, **how: Any) -> NovaMeshError:
    with pytest.raises(NovaMeshError) as caught:
        load(*arguments, **how)
    return caught.value


def test_defaults(tmp_path: Path) -> None:
    config = load(tmp_path)
    assert config.models == ("nova-pico",)
    assert config.slots == 4
    assert config.threads >= 1
    assert (config.device, config.log_format, config.joining) == ("cpu", "text", False)
    assert config.pool.address == "pool.example.org:7700"
    assert config.pool.invite_bytes == b"\x00\xff"


def test_flag_wins_over_environment_over_file(tmp_path: Path) -> None:
    text = POOL + "[node]\nslots = 2\nthreads = 2\ntokens_max = 9\n"
    env = {"NOVAMESH_NODE_SLOTS": "3", "NOVAMESH_NODE_THREADS": "3"}
    config = load(tmp_path, text, env=env, flags={"slots": 5, "threads": None})
    assert (config.slots, config.threads, config.policy.tokens_max) == (5, 3, 9)


def test_models_are_listed_once_each(tmp_path: Path) -> None:
    config = load(tmp_path, flags={"models": "a, b,a,/some/folder"})
    assert config.models == ("a", "b", "/some/folder")
    assert refused(tmp_path, flags={"models": " , "}).code is Code.BAD_CONFIG


def test_refused_clients(tmp_path: Path) -> None:
    text = POOL + f'[node]\nrefused_clients = "{format_node_id(CLIENT.node_id)}"\n'
    assert load(tmp_path, text).policy.refused_clients == {CLIENT.node_id}
    assert refused(tmp_path, POOL + '[node]\nrefused_clients = "me"\n').code is Code.BAD_KEY


def test_a_join_code_wins_over_the_file(tmp_path: Path) -> None:
    config = load(tmp_path, join=CODE)
    assert config.joining
    assert config.pool.address == "127.0.0.1:7700"
    assert refused(tmp_path, join="nm1xyz").code is Code.BAD_REQUEST


def test_the_environment_may_hold_the_join_code_and_the_flag_wins(tmp_path: Path) -> None:
    other = format_join_code(JoinCode("10.0.0.1:7", COORDINATOR.node_id, NETWORK, b"other"))
    config = load(tmp_path, "", env={"NOVAMESH_JOIN": CODE})
    assert (config.joining, config.pool.invite_bytes) == (True, b"invite")
    assert load(tmp_path, env={"NOVAMESH_JOIN": CODE}).pool == config.pool
    assert load(tmp_path, env={"NOVAMESH_JOIN": CODE}, join=other).pool.address == "10.0.0.1:7"


def test_an_empty_join_code_in_the_environment_is_none(tmp_path: Path) -> None:
    config = load(tmp_path, env={"NOVAMESH_JOIN": " "})
    assert (config.joining, config.pool.address) == (False, "pool.example.org:7700")
    error = refused(tmp_path, env={"NOVAMESH_JOIN": "nm1xyz"})
    assert error.code is Code.BAD_CONFIG
    assert error.message.startswith("NOVAMESH_JOIN: ")


def test_without_a_pool_it_says_how_to_join(tmp_path: Path) -> None:
    error = refused(tmp_path, "")
    assert error.code is Code.BAD_CONFIG
    assert error.meaning.exit == 78
    assert "novamesh node start --join CODE" in error.hint


@pytest.mark.parametrize(
    "line", ["slot = 2", "slots = 0", 'slots = "many"', 'log_format = "xml"', "slots = 1000"]
)
def test_what_means_nothing_is_an_error_that_names_it(tmp_path: Path, line: str) -> None:
    error = refused(tmp_path, POOL + f"[node]\n{line}\n")
    assert error.code is Code.BAD_CONFIG
    assert line.split(" ")[0] in error.message
