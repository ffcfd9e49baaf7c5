"""Where it runs: a CUDA card with its own clock, or Triton's interpreter with the CPU's.

Rules: a cold run finds nothing of its data in the cache; figures of the interpreter are none.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias

import pynvml
import torch

from novamesh_engine.kernels.cards import AMPERE, choose_for, look_at
from novamesh_engine.kernels.gpu import Gpu
from novamesh_engine.kernels.gpu_forward import GpuForward
from novamesh_engine.kernels.graphs import CudaRecorder
from novamesh_engine.kernels.stopwatch import FLUSHED_BYTES, cuda_timer
from novamesh_engine.kernels.tuning import CUTS, TURING_CUTS, Cut, Tuning, tuning_file
from novamesh_engine.kernels.tuning import Run as Timed
from novamesh_engine.models.decoder import Decoder

WARM_RUNS: Final = 3
TUNING_FOLDER: Final = Path(__file__).parents[2] / "build" / "tuning"
_BY_ROWS: Final = ("rows", "scores", "gate_up", "down")

Run: TypeAlias = Callable[[], object]


class Device(Protocol):
    """What kernels run on."""

    name: str  # torch's: cuda:0, cpu
    card: str
    compute: torch.dtype
    processors: int
    kv: tuple[str, ...]  # kinds of caches, the usual one first
    tuning: Tuning

    def cold(self, run: Run, runs: int) -> list[float]:
        """Seconds of each run, with nothing of its data in the cache."""
        ...

    def recorded(self, run: Run) -> Run:
        """The same work without launching each kernel, where the device can."""
        ...

    def forward(self, decoder: Decoder) -> GpuForward:
        """A decoder ready to run as the engine runs it."""
        ...

    def wait(self) -> None:
        """Until everything asked for is done."""
        ...

    def free_bytes(self) -> int:
        """Memory that is not in use, after giving back what nobody holds."""
        ...

    def energy_j(self) -> float | None:
        """Joules since some moment; None where nobody counts."""
        ...

    def document(self) -> dict[str, Any]:
        """For JSON."""
        ...


class UnusableDeviceError(RuntimeError):
    """There is no card that our kernels run on."""


class CudaCard:
    """A card of NVIDIA's, or of AMD's through ROCm."""

    kv = ("bf16", "int8")

    def __init__(self, name: str, tune: bool) -> None:
        found = look_at(name)
        chosen = choose_for(found)
        if chosen.kernels != "triton":
            raise UnusableDeviceError(f"{name}: {chosen.why}")
        self.name, self.card, self.compute = name, found.name, chosen.compute
        self.processors = found.processors
        cuts = CUTS if found.rocm or found.capability >= AMPERE else TURING_CUTS
        self.tuning = Tuning(cuts=cuts)
        if tune:
            file = tuning_file(TUNING_FOLDER, found.name)
            self.tuning = Tuning(file, cuda_timer(name), cuts)
        self._tuned = tune
        torch.cuda.set_device(torch.device(name).index or 0)  # where Triton launches
        self._waste = torch.empty(FLUSHED_BYTES, dtype=torch.uint8, device=name)
        self._meter = _meter(name)

    def cold(self, run: Run, runs: int) -> list[float]:
        """Seconds by the card's own events, its L2 cache overwritten before each run."""
        for _ in range(WARM_RUNS):
            run()
        pairs = []
        for _ in range(runs):
            self._waste.zero_()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            run()
            end.record()
            pairs.append((begin, end))
        self.wait()
        return [begin.elapsed_time(end) / 1000 for begin, end in pairs]

    def recorded(self, run: Run) -> Run:
        """A CUDA graph of it; the first run compiles and is not recorded."""
        aside = torch.cuda.Stream(self.name)
        aside.wait_stream(torch.cuda.current_stream(self.name))
        with torch.cuda.stream(aside):
            run()
        torch.cuda.current_stream(self.name).wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        return graph.replay

    def forward(self, decoder: Decoder) -> GpuForward:
        """With CUDA graphs."""
        gpu, recorder = Gpu(self.name, self.compute, self.tuning), CudaRecorder(self.name)
        return GpuForward(decoder, gpu, processors=self.processors, recorder=recorder)

    def wait(self) -> None:
        """Until the card is idle."""
        torch.cuda.synchronize(self.name)

    def free_bytes(self) -> int:
        """As the driver tells."""
        gc.collect()
        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info(self.name)[0])

    def energy_j(self) -> float | None:
        """NVML's counter, whole card, idle power included."""
        return None if self._meter is None else self._meter() / 1000

    def document(self) -> dict[str, Any]:
        """The card, its driver and what was compiled with."""
        facts = torch.cuda.get_device_properties(self.name)
        return {
            "name": self.card,
            "capability": f"{facts.major}.{facts.minor}",
            "processors": self.processors,
            "memory_bytes": facts.total_memory,
            "l2_bytes": getattr(facts, "L2_cache_size", None),
            "driver": _driver(),
            "torch": torch.__version__,
            "triton": importlib.metadata.version("triton"),
            "cuda": torch.version.cuda or torch.version.hip,
            "compute": str(self.compute).removeprefix("torch."),
            "tuned": self._tuned,
        }


class Wide(Tuning):
    """Few large programs, with which the interpreter is quicker than with many small ones."""

    def cut(self, kernel: str, shape: tuple[int, ...], tokens: int, run: Timed) -> Cut:
        """The default, but of all rows of a tiny matrix at once where it is read row by row."""
        usual = super().cut(kernel, shape, tokens, run)
        return replace(usual, rows=64) if kernel in _BY_ROWS else usual


class Interpreter:
    """No card: every kernel runs in Python, in float32, so that the script can be tried."""

    name, card, compute, processors = "cpu", "Triton's interpreter", torch.float32, 4
    kv = ("fp32", "int8")  # the interpreter cuts bfloat16 off where a card rounds

    def __init__(self) -> None:
        self.tuning: Tuning = Wide()
        torch.set_num_threads(1)  # what it asks of torch is too small to share

    def cold(self, run: Run, runs: int) -> list[float]:
        """Seconds by the CPU's clock, nothing flushed."""
        took = []
        for _ in range(runs):
            begun = time.perf_counter()
            run()
            took.append(time.perf_counter() - begun)
        return took

    def recorded(self, run: Run) -> Run:
        """The same; it cannot."""
        return run

    def forward(self, decoder: Decoder) -> GpuForward:
        """Launching each kernel."""
        gpu = Gpu(self.name, self.compute, self.tuning)
        return GpuForward(decoder, gpu, processors=self.processors)

    def wait(self) -> None:
        """Nothing is ever under way."""

    def free_bytes(self) -> int:
        """Enough for anything tiny."""
        return 1 << 34

    def energy_j(self) -> float | None:
        """Nobody counts."""
        return None

    def document(self) -> dict[str, Any]:
        """What interprets."""
        versions = {"torch": torch.__version__, "triton": importlib.metadata.version("triton")}
        return {"name": self.card, "compute": "float32"} | versions


def _meter(name: str) -> Callable[[], int] | None:
    """NVML's total energy of a card in millijoules; None where it does not count."""
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(
            f"GPU-{torch.cuda.get_device_properties(name).uuid}"
        )
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except (pynvml.NVMLError, AttributeError):
        return None
    return lambda: int(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))


def _driver() -> str | None:
    with contextlib.suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    return None
