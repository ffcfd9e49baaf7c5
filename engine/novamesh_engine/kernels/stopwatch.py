"""How long a device takes for what it is asked, with none of its data in the cache."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Final

import torch

from novamesh_engine.kernels.cards import on_device

FLUSHED_BYTES: Final = 256 << 20  # more than any card's L2 cache holds
COPIED_BYTES: Final = 256 << 20
WARM_RUNS: Final = 2
RUNS: Final = 15


def cuda_timer(device: str) -> Callable[[Callable[[], object]], float]:
    """A function that gives the median milliseconds of a run on this device."""

    def time(run: Callable[[], object]) -> float:
        with on_device(device):
            return _time(run)

    def _time(run: Callable[[], object]) -> float:
        waste = torch.empty(FLUSHED_BYTES, dtype=torch.uint8, device=device)
        for _ in range(WARM_RUNS):
            run()
        pairs = []
        for _ in range(RUNS):
            waste.zero_()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            begin.record()
            run()
            end.record()
            pairs.append((begin, end))
        torch.cuda.synchronize(device)
        return float(statistics.median(begin.elapsed_time(end) for begin, end in pairs))

    return time


def measure_copy(device: str) -> int:
    """Bytes a second that a device moves when it copies, read and written ones together.

    0 where it has no room for that.
    """
    try:
        source = torch.empty(COPIED_BYTES // 2, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        took_ms = cuda_timer(device)(lambda: target.copy_(source))
    except torch.OutOfMemoryError:
        return 0
    return int(2 * source.nbytes / (took_ms / 1e3))
