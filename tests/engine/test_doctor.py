"""Each check as it comes out on a machine that has, or has not, what it asks for."""

from __future__ import annotations

import importlib.util
import shutil
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


def test_no_compiler_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert check("compiler").status is Status.WARN


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


def test_a_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A Card")
    assert "A Card" in check("torch").detail


def test_the_built_in_model_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(novamesh_engine, "__path__", [str(tmp_path)])
    assert check("model").status is Status.WARN
    save_nova(tmp_path / "builtin" / "nova-pico")
    assert check("model").status is Status.OK
