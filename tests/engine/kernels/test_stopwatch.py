"""The median of runs, each after the cache was filled with something else."""

from __future__ import annotations

from collections.abc import Iterator

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
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    waited: list[str] = []
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    monkeypatch.setattr(stopwatch, "FLUSHED_BYTES", 8)
    yield waited


def test_the_median_of_the_runs_counts(device: list[str]) -> None:
    times = iter([100.0] * stopwatch.WARM_RUNS + [3.0, 9.0, 5.0] * (stopwatch.RUNS // 3))

    def run() -> None:
        Event.now += next(times)

    assert stopwatch.cuda_timer("cpu")(run) == 5.0
    assert device == ["cpu"]
    assert next(times, None) is None
