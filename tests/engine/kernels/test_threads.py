"""One thread a core: hardware threads share one, a container may have fewer."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from novamesh_engine.kernels.threads import physical_cores


def _siblings(root: Path, cores: dict[int, str]) -> Path:
    for cpu, siblings in cores.items():
        folder = root / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(siblings + "\n")
    return root


def _quota(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_hardware_threads_of_a_core_count_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 4, 5, 6}, raising=False)
    cpus = _siblings(tmp_path / "cpus", {0: "0,4", 1: "1,5", 4: "0,4", 5: "1,5"})
    assert physical_cores(cpus, tmp_path / "none") == 3  # 6 says nothing: a core of its own
    assert physical_cores(cpus, _quota(tmp_path / "max", "200000 100000\n")) == 2
    assert physical_cores(cpus, _quota(tmp_path / "max", "50000 100000\n")) == 1
    assert physical_cores(cpus, _quota(tmp_path / "max", "max 100000\n")) == 3


def test_this_machine_has_some() -> None:
    assert 1 <= physical_cores() <= (os.cpu_count() or 1)
