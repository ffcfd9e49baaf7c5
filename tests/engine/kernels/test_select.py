"""Choosing kernels: once, never failing, and saying why."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import novamesh_engine
from novamesh_engine import kernels
from novamesh_engine.kernels import reference


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    kernels._look.cache_clear()
    yield
    kernels._look.cache_clear()


def test_native_kernels_where_they_were_built() -> None:
    built = kernels.native.find_library(list(novamesh_engine.__path__)) is not None
    assert kernels.select().name.startswith("native-" if built else "torch")
    assert kernels.select() is kernels.select()
    assert kernels.describe().startswith(kernels.select().name)


def test_another_device_gets_the_reference() -> None:
    assert kernels.select("cuda") is reference.KERNELS
    assert kernels.describe("cuda") == "torch"


def test_without_a_library_torch_serves_and_doctor_hears_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(novamesh_engine, "__path__", [str(tmp_path)])
    assert kernels.select() is reference.KERNELS
    assert kernels.describe().startswith("torch (no native kernels: not built: no C++ compiler")
