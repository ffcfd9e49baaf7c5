"""Keeping freed memory, and giving it back, is possible on glibc, and harmless elsewhere."""

from __future__ import annotations

import ctypes
import platform

import pytest

from novamesh_engine.heap import give_back_memory, keep_freed_memory


def test_glibc_takes_the_settings() -> None:
    assert keep_freed_memory() is (platform.libc_ver()[0] == "glibc")
    assert give_back_memory() is (platform.libc_ver()[0] == "glibc")


def test_another_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    assert not keep_freed_memory()
    assert not give_back_memory()
