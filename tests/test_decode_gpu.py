"""The GPU's benchmark where there is no GPU: it runs, it stops if a kernel is wrong, it says so."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from novamesh_engine.kernels.gpu import Gpu

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / "decode_gpu.py"), *arguments]
    quiet = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=quiet)


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a module of benchmarks/gpu."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return lambda name: importlib.import_module(f"gpu.{name}")


@pytest.mark.timeout(600)
def test_it_runs_on_the_interpreter_and_calls_no_figure_a_result(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    chosen = "--models", "Qwen3-30B-A3B", "--only", "kernels,decode,energy"
    done = run("--tiny", "--interpret", *chosen, "--out", str(file))
    assert done.returncode == 0, done.stderr
    assert "no figure of it is a result" in done.stdout
    found = json.loads(file.read_text())
    assert found["is a result"] is False
    distances = found["relative distance from float64"]["Qwen3-30B-A3B"]
    assert len(distances) > 20
    assert max(distances.values()) < 2e-5
    rows = {figure["name"]: figure for figure in found["figures"]}
    assert {"device copy, read and written", "Qwen3-30B-A3B: head, share of copy",
            "Qwen3-30B-A3B: decode, batch 32"} <= set(rows)  # fmt: skip
    assert not [row for row in rows.values() if row["met"] is not None]
    assert found["skipped"] == {"Qwen3-30B-A3B: energy": "NVML does not count here"}


def test_without_a_gpu_it_says_how_to_try_it() -> None:
    done = run()
    assert done.returncode == 2
    assert not done.stdout
    assert done.stderr.splitlines() == [
        "decode_gpu: cuda:0: torch cannot open this card",
        "decode_gpu: run it where a GPU is, or see whether it works: --tiny --interpret",
    ]


def test_true_shapes_are_not_interpreted() -> None:
    done = run("--interpret")
    assert done.returncode == 2
    assert "--tiny --interpret" in done.stderr


def test_a_wrong_kernel_stops_it(part: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    right = Gpu.linear
    monkeypatch.setattr(Gpu, "linear", lambda *args, **named: 1.001 * right(*args, **named))
    correct, threads = part("correct"), torch.get_num_threads()
    config = part("shapes").configs(tiny=True)["Phi-mini"]
    said = r"Phi-mini: kernel 'rows, norm' is 1.0e-03 from float64 .* nothing was timed"
    with pytest.raises(correct.WrongError, match=said):
        correct.check(part("device").Interpreter(), "Phi-mini", config)
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("card", "least"),
    [
        ("NVIDIA H200", 1000),
        ("NVIDIA GeForce RTX 4090", 420),
        ("NVIDIA GeForce RTX 4090 D", 420),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA H100 80GB HBM3", None),
    ],
)
def test_a_gate_is_for_its_card(part: Any, card: str, least: float | None) -> None:
    bar = part("gates").bar
    assert bar("decode Phi-mini", card, True)["least"] == least
    assert bar("decode Phi-mini", card, False)["least"] is None
    assert bar("head", card, True) == {"least": 80, "stretch": 90}
    assert bar("", card, True)["least"] is None


def test_a_depth_that_does_not_fit_is_reckoned_from_two_that_do(part: Any) -> None:
    reckon = part("whole").reckon
    assert reckon((32,), [5.0], 32) == 5.0
    assert reckon((2, 4), [3.0, 5.0], 10) == pytest.approx(11.0)


def test_its_shapes_are_those_of_the_published_models(part: Any) -> None:
    found = part("shapes").configs(tiny=False)
    billions = {name: round(config.parameters / 1e9, 2) for name, config in found.items()}
    assert billions == {"Phi-mini": 7.65, "OLMoE": 6.92, "Qwen3-30B-A3B": 30.53}
