"""Checkpoints: damaged, foreign and missing ones are refused with their name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from novamesh_engine.recipe.checkpoint import FILE, Run, load, save
from novamesh_engine.recipe.network import Network
from novamesh_engine.recipe.optimizer import Optimizer
from novamesh_engine.recipe.preset import PRESETS
from novamesh_proto.errors import Code, NovaMeshError

SMOKE = PRESETS["smoke"]
RUN = Run(SMOKE.digest, 0, "eager-float32-1-thread")


def make_parts(seed: int) -> tuple[Network, Optimizer]:
    torch.manual_seed(seed)
    network = Network(SMOKE)
    return network, Optimizer(network, SMOKE)


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    network, optimizer = make_parts(1)
    optimizer.state["norm/mean"].fill_(0.5)
    save(tmp_path, RUN, 7, 12.34, (network, optimizer))
    other, state = make_parts(2)
    assert load(tmp_path, RUN, (other, state)) == (7, 12.3)
    assert torch.equal(other.embedding, network.embedding)
    assert torch.equal(state.state["norm/mean"], optimizer.state["norm/mean"])
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_it_is_safetensors_with_its_run(tmp_path: Path) -> None:
    save(tmp_path, RUN, 7, 1.0, make_parts(1))
    with safe_open(tmp_path / FILE, framework="pt") as file:
        assert file.metadata()["preset"] == SMOKE.digest


def test_a_missing_one_is_told(tmp_path: Path) -> None:
    with pytest.raises(NovaMeshError, match="no checkpoint") as caught:
        load(tmp_path, RUN, make_parts(1))
    assert caught.value.code is Code.NOT_FOUND


@pytest.mark.parametrize("run", [Run("x", 0, RUN.backend), Run(RUN.preset_digest, 1, RUN.backend),
                                 Run(RUN.preset_digest, 0, "compiled")])  # fmt: skip
def test_a_foreign_one_is_refused(tmp_path: Path, run: Run) -> None:
    save(tmp_path, run, 7, 1.0, make_parts(1))
    with pytest.raises(NovaMeshError, match="belongs to another") as caught:
        load(tmp_path, RUN, make_parts(1))
    assert caught.value.code is Code.CONFLICT


@pytest.mark.parametrize("keep", [0, 4, 200, 0.5])
def test_a_cut_one_is_refused(tmp_path: Path, keep: float) -> None:
    save(tmp_path, RUN, 7, 1.0, make_parts(1))
    path = tmp_path / FILE
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(NovaMeshError, match="damaged") as caught:
        load(tmp_path, RUN, make_parts(1))
    assert caught.value.code is Code.CORRUPT
