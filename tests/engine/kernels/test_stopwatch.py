"""The median of runs, each after the cache was filled with something else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from novamesh_engine.kernels import stopwatch


class Event:
    """A device's event whose times are scripted; `now` is the device's clock."""

    now = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.at = -1.0

    def record(self) -> None:
        self.at = Event.now

    def elapsed_time(self, end: Event) -> float:
        return end.at - self.at


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    waited: list[str] = []
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    monkeypatch.setattr(stopwatch, "FLUSHED_BYTES", 8)
    return waited


def test_the_median_of_the_runs_counts(device: list[str]) -> None:
    times = iter([100.0] * stopwatch.WARM_RUNS + [3.0, 9.0, 5.0] * (stopwatch.RUNS // 3))

    def run() -> None:
        Event.now += next(times)

    assert stopwatch.cuda_timer("cpu")(run) == 5.0
    assert device == ["cpu"]
    assert next(times, None) is None


def test_a_copy_counts_what_is_read_and_what_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopwatch, "COPIED_BYTES", 4000)
    copied: list[object] = []

    def timer(run: Callable[[], object]) -> float:
        copied.append(run())
        return 2.0

    monkeypatch.setattr(stopwatch, "cuda_timer", lambda device: timer)
    assert stopwatch.measure_copy("cpu") == 2_000_000  # 4000 bytes in 2 ms
    assert len(copied) == 1


def test_a_full_device_tells_no_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(torch, "empty", full)
    assert stopwatch.measure_copy("cpu") == 0
