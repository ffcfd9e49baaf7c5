"""Each check as it comes out on a machine that has, or has not, what it asks for."""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import novamesh_engine
from novamesh_engine.doctor import Check, Status, doctor_checks
from novamesh_engine.kernels import choice
from support.tiny_moe import save_nova


def check(name: str) -> Check:
    return next(one for one in doctor_checks() if one.name == name)


def test_every_check_is_there_and_none_fails_here() -> None:
    checks = doctor_checks()
    assert [one.name for one in checks] == ["torch", "kernels", "compiler", "model"]
    assert all(one.status is not Status.FAIL and one.detail for one in checks)
    assert all(one.hint for one in checks if one.status is not Status.OK)


def test_missing_packages_fail_with_the_command_that_installs_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (only,) = doctor_checks()
    assert only.status is Status.FAIL
    assert "torch" in only.detail
    assert only.hint == "pip install 'novamesh[engine]'"


@pytest.mark.parametrize("built", [False, True])
def test_no_compiler_is_a_warning_where_kernels_are_missing(
    built: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = choice.Kernels("avx2", ("avx2",), "the best")
    absent = choice.Kernels("torch", (), "not built", "build it")
    monkeypatch.setattr(choice, "look", lambda: there if built else absent)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    found = check("compiler")
    assert found.status is (Status.OK if built else Status.WARN)
    assert ("torch's own kernels" in found.hint) is not built


def test_kernels_are_named_as_a_benchmark_names_them_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sets = ("scalar", "avx2")
    monkeypatch.setattr(choice, "look", lambda: choice.Kernels("avx2", sets, "the best"))
    said = "native-avx2-int8: the best, of scalar, avx2"
    assert check("kernels") == Check("kernels", Status.OK, said)
    absent = choice.Kernels("torch", (), "not built", "build it")
    monkeypatch.setattr(choice, "look", lambda: absent)
    assert check("kernels") == Check("kernels", Status.WARN, "torch: not built", "build it")


@dataclass(frozen=True)
class OldCard:
    """What every version of torch tells."""

    total_memory: int
    name: str = "A Card"
    major: int = 8
    minor: int = 6
    multi_processor_count: int = 28


@dataclass(frozen=True)
class Card(OldCard):
    """What new ones tell: of an RTX 3060."""

    memory_clock_rate: int = 7_501_000
    memory_bus_width: int = 192


def insert(monkeypatch: pytest.MonkeyPatch, card: OldCard, free: int) -> None:
    """Put a card into this machine, as torch sees it."""
    for name, told in {
        "is_available": True,
        "get_device_name": "A Card",
        "mem_get_info": (free, card.total_memory),
        "get_device_properties": card,
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, told=told: told)


def test_a_gpu_is_named_and_its_memory_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    insert(monkeypatch, Card(8 * 10**9), free=7_600_000_000)
    assert "A Card" in check("torch").detail
    names = [one.name for one in doctor_checks()]
    assert names == ["torch", "kernels", "card", "memory", "compiler", "model"]
    said = "A Card: triton, bfloat16: the best this card has"
    assert check("card") == Check("card", Status.OK, said)
    said = (
        "phi-mini-moe-instruct, all: every weight on the device, 5.9 GB of 7.6 GB, of it KV"
        " 1.1 GB (8192 tokens, bf16), memory allows about 301 tokens/s"
    )
    assert check("memory") == Check("memory", Status.OK, said)


def test_a_card_that_others_fill_gets_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    insert(monkeypatch, OldCard(8 * 10**9), free=4 * 10**9)
    said = (
        "phi-mini-moe-instruct, hot: 10 of 16 experts a layer on the device, 4.0 GB of 4.0 GB,"
        " of it KV 0.7 GB (4960 tokens, bf16)"
    )
    assert check("memory") == Check("memory", Status.OK, said)
    insert(monkeypatch, OldCard(8 * 10**9), free=10**9)
    none = check("memory")
    assert none.status is Status.WARN
    assert "none: the CPU computes" in none.detail
    assert "close what else uses the card" in none.hint


def test_a_card_below_the_catalogue_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    insert(monkeypatch, Card(3 * 10**9), free=3 * 10**9)
    said = "3.0 GB, and the catalogue begins at 6 GB: models run from RAM"
    assert check("memory") == Check("memory", Status.OK, said)


def test_a_card_that_does_not_open_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    insert(monkeypatch, Card(8 * 10**9), free=0)

    def fail(device: int) -> tuple[int, int]:
        raise RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be")

    monkeypatch.setattr(torch.cuda, "mem_get_info", fail)
    found = check("memory")
    assert found.status is Status.WARN
    assert found.detail == "the card does not open: CUDA error: out of memory"
    assert found.hint


def test_the_built_in_model_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(novamesh_engine, "__path__", [str(tmp_path)])
    assert check("model").status is Status.WARN
    save_nova(tmp_path / "builtin" / "nova-pico")
    assert check("model").status is Status.OK
