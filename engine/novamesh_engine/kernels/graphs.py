"""Recorded steps: what a device does in a step, replayed without launching each kernel again.

A recording is for one key, such as a bucket of tokens, and reads the same memory each time. Rules:
at most RECORDINGS_MAX are kept, the one not used for longest goes; the result of a replay is
overwritten by the next one; where recording fails, every step is launched, and it is said why.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

import torch
from torch import Tensor

from novamesh_engine.shortage import is_out_of_memory

RECORDINGS_MAX: Final = 32
_ONE_AT_A_TIME: Final = threading.Lock()

Work: TypeAlias = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Recording:
    """Memory that a step reads, what it leaves, and how to run it again."""

    x: Tensor
    buffer: Tensor
    result: Tensor
    replay: Callable[[], None]


class Recorder(Protocol):
    """Makes a recording of work on two inputs, which it copies to memory that stays."""

    def __call__(self, work: Work, x: Tensor, buffer: Tensor) -> Recording:
        """Record; the result of this first run is valid."""
        ...


class Graphs:
    """The recordings of one forward."""

    def __init__(self, record: Recorder) -> None:
        self.broken = ""  # why nothing is recorded
        self._record = record
        self._kept: OrderedDict[Hashable, Recording] = OrderedDict()

    def run(self, key: Hashable, work: Work, x: Tensor, buffer: Tensor) -> Tensor:
        """What `work` makes of x and buffer; `work` is only called where nothing is recorded."""
        known = self._kept.get(key) or self._add(key, work, x, buffer)
        if known is None:
            return work(x, buffer.to(x.device))
        self._kept.move_to_end(key)
        known.x.copy_(x, non_blocking=True)
        known.buffer.copy_(buffer, non_blocking=True)
        known.replay()
        return known.result

    def _add(self, key: Hashable, work: Work, x: Tensor, buffer: Tensor) -> Recording | None:
        if self.broken:
            return None
        try:
            made = self._kept[key] = self._record(work, x, buffer)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            self.broken = f"a step could not be recorded: {error}"
            return None
        if len(self._kept) > RECORDINGS_MAX:
            self._kept.popitem(last=False)
        return made

    def forget(self) -> None:
        """Drop all recordings and the memory that they hold."""
        self._kept.clear()


class CudaRecorder:
    """Records CUDA graphs, which share one pool of memory and the stream that it belongs to.

    CUDA records one at a time in a process, and what other engines do meanwhile must not end it.
    """

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]

    def __call__(self, work: Work, x: Tensor, buffer: Tensor) -> Recording:
        """Run once, so that kernels are compiled and tuned, then record."""
        fixed = x.to(self._device, copy=True), buffer.to(self._device, copy=True)
        here, graph = torch.cuda.current_stream(self._device), torch.cuda.CUDAGraph()
        with _ONE_AT_A_TIME:
            self._stream.wait_stream(here)
            with torch.cuda.stream(self._stream):
                work(*fixed)
            here.wait_stream(self._stream)
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                result = work(*fixed)
        return Recording(*fixed, result, graph.replay)
