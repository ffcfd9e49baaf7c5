"""Loading: each model once, measured once, refused where it is not what its manifest says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from novamesh.config import Pool
from novamesh_node import loading
from novamesh_node.config import NodeConfig, load_node_config
from novamesh_node.loading import (
    STEP_S,
    STEP_TOKENS_LEAST,
    STEP_TOKENS_MAX,
    engine_build,
    load_models,
    step_tokens,
)
from novamesh_node.state import NodeState
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.identity import format_node_id
from support.parties import COORDINATOR, NETWORK
from support.tiny_profile import save_tiny_profile

POOL = Pool("127.0.0.1:7700", format_node_id(COORDINATOR.node_id), NETWORK)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def config(home: Path, *models: Path) -> NodeConfig:
    env = {
        f"NOVAMESH_POOL_{key.upper()}": getattr(POOL, key)
        for key in ("address", "coordinator", "network")
    }
    flags = {"models": ",".join(map(str, models)), "threads": 1, "slots": 2}
    return load_node_config(home, env, flags)


def test_a_model_is_loaded_measured_and_offered(tmp_path: Path) -> None:
    profile = save_tiny_profile(tmp_path / "tiny")
    said: list[str] = []
    (loaded,) = load_models(
        config(tmp_path, tmp_path / "tiny", tmp_path / "tiny" / "."),
        NodeState(tmp_path / "node"),
        said.append,
    )
    offer = loaded.offer
    assert (offer.model_profile, offer.name, offer.context_max) == (profile.digest, "tiny", 256)
    assert offer.decode_tokens_per_s > 0
    assert offer.prefill_tokens_per_s > 0
    assert loaded.engine.config.max_running == 2
    assert not loaded.engine.has_work
    assert len(said) == 1
    assert "tiny" in said[0]
    assert engine_build("cpu").startswith("0.")


@given(st.floats(0, 1e6), st.integers(1, 48))
def test_a_step_never_takes_much_longer_than_it_may(speed: float, slots: int) -> None:
    tokens = step_tokens(speed, slots)
    assert max(slots, STEP_TOKENS_LEAST) <= tokens <= STEP_TOKENS_MAX
    if speed > 0 and tokens > max(slots, STEP_TOKENS_LEAST):
        assert tokens <= speed * STEP_S


def test_a_slow_machine_takes_small_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tiny_profile(tmp_path / "tiny")
    monkeypatch.setattr(loading, "_measure", lambda engine: (20.0, 2.0))
    state = NodeState(tmp_path / "node")
    for _ in range(2):  # measured, then remembered
        (loaded,) = load_models(config(tmp_path, tmp_path / "tiny"), state, lambda _: None)
        assert loaded.engine.config.max_step_tokens == 60


def test_it_is_measured_once(tmp_path: Path) -> None:
    profile = save_tiny_profile(tmp_path / "tiny")
    state = NodeState(tmp_path / "node")
    state.save_speed(f"{profile.digest.hex()} {engine_build('cpu')} cpu 1", 111.0, 22.0)
    (loaded,) = load_models(config(tmp_path, tmp_path / "tiny"), state, lambda _: None)
    assert loaded.offer.prefill_tokens_per_s == 111.0
    assert loaded.offer.decode_tokens_per_s == 22.0


def test_a_changed_file_is_refused_by_name(tmp_path: Path) -> None:
    save_tiny_profile(tmp_path / "tiny")
    weights = tmp_path / "tiny" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(NovaMeshError) as caught:
        load_models(config(tmp_path, tmp_path / "tiny"), NodeState(tmp_path), lambda _: None)
    assert caught.value.code is Code.CORRUPT
    assert "model.safetensors" in caught.value.message


def test_an_unknown_model_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    save_tiny_profile(tmp_path / "tiny")
    said: list[str] = []
    with pytest.raises(NovaMeshError) as caught:
        load_models(
            config(tmp_path, tmp_path / "tiny", tmp_path / "no"), NodeState(tmp_path), said.append
        )
    assert caught.value.code is Code.MODEL_NOT_FOUND
    assert said == []
