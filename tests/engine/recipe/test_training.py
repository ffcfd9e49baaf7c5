"""Training: the same bytes twice, interrupted or not; the schedule."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from novamesh_engine.recipe.export import plain_tensors
from novamesh_engine.recipe.preset import PRESETS
from novamesh_engine.recipe.training import (
    Backend,
    Progress,
    Trained,
    detect_backend,
    prepare_torch,
    rate_share,
    train,
)
from novamesh_proto.errors import NovaMeshError

SMOKE = PRESETS["smoke"]
EAGER = Backend(compiled=False, half=False)


@pytest.fixture(autouse=True)
def _fixed() -> None:
    torch.set_num_threads(1)


def ignore(progress: Progress) -> None:
    """Nobody looks."""


def stop_at(step: int) -> object:
    """A reader that is interrupted."""

    def report(progress: Progress) -> None:
        if progress.step == step:
            raise KeyboardInterrupt

    return report


def serialize(trained: Trained) -> bytes:
    """The model's bytes."""
    return save(plain_tensors(trained.network)) + trained.tokenizer.to_str().encode()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return serialize(train(SMOKE, 0, tmp_path_factory.mktemp("whole"), ignore, backend=EAGER))


def test_two_runs_give_the_same_bytes(tmp_path: Path, whole: bytes) -> None:
    assert serialize(train(SMOKE, 0, tmp_path, ignore, backend=EAGER)) == whole


def test_another_seed_gives_another_model(tmp_path: Path, whole: bytes) -> None:
    assert serialize(train(SMOKE, 1, tmp_path, ignore, backend=EAGER)) != whole


@pytest.mark.parametrize("step", [12, 17])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, whole: bytes, step: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(SMOKE, 0, tmp_path, stop_at(step), backend=EAGER)  # type: ignore[arg-type]
    steps: list[int] = []
    trained = train(SMOKE, 0, tmp_path, lambda p: steps.append(p.step), resume=True, backend=EAGER)
    assert steps[0] == 11, "the last checkpoint was at step 10"
    assert serialize(trained) == whole


def test_a_finished_run_can_be_resumed_for_its_result(tmp_path: Path, whole: bytes) -> None:
    train(SMOKE, 0, tmp_path, ignore, backend=EAGER)
    assert serialize(train(SMOKE, 0, tmp_path, ignore, resume=True, backend=EAGER)) == whole


def test_resume_refuses_another_seed(tmp_path: Path) -> None:
    train(SMOKE, 0, tmp_path, ignore, backend=EAGER)
    with pytest.raises(NovaMeshError, match="another preset, seed"):
        train(SMOKE, 1, tmp_path, ignore, resume=True, backend=EAGER)


def test_phases_are_reported(tmp_path: Path) -> None:
    seen: list[Progress] = []
    train(SMOKE, 0, tmp_path, seen.append, backend=EAGER)
    assert [p.phase for p in seen] == ["pretrain"] * 4 + ["sft"] * 16
    assert seen[-1].step == seen[-1].steps == SMOKE.steps
    assert seen[-1].loss < seen[0].loss


def test_the_rate_warms_up_holds_and_falls() -> None:
    pico = PRESETS["pico"]
    shares = [rate_share(pico, step) for step in range(pico.steps)]
    assert shares[0] == 1 / pico.warmup_steps
    falls = int(pico.steps * (1 - pico.decay_share))
    assert set(shares[pico.warmup_steps : falls]) == {1.0}
    assert 0 < shares[-1] < 0.001
    assert shares[falls:] == sorted(shares[falls:], reverse=True)


def test_the_machine_decides_the_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert not detect_backend().compiled
    assert EAGER.name == "eager-float32-1-thread"


def test_preparing_fixes_what_the_bytes_depend_on() -> None:
    try:
        prepare_torch()
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.get_num_threads() == 1
    finally:
        torch.use_deterministic_algorithms(False)
