"""Compiles every kernel of a device for cards that are not here, as real launches would ask.

A driver without a card takes the place of Triton's: a whole forward of true shape runs on it, each
launch is compiled for the card in question and recorded instead of started. So what is checked is
every kernel at every cut with the types, shapes and alignments that a model gives it. Run as
`python -m support.ahead sm_80 ...`, in a process that does not interpret; prints one JSON line for
each compiled kernel.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
import triton
from triton.backends.compiler import GPUTarget

from novamesh_engine.kernels.gpu import Gpu
from novamesh_engine.kernels.gpu_forward import GpuForward
from novamesh_engine.kernels.tuning import CUTS, TURING_CUTS, Cut, Run, Tuning
from support.true_shapes import SHAPES, build, steps

# Shared memory that one program may have, bytes: CUDA C++ programming guide, "compute
# capabilities"; RDNA and CDNA have 64 KiB.
SHARED: Final = {
    "sm_75": 65536, "sm_80": 166912, "sm_86": 101376, "sm_89": 101376, "sm_90": 232448,
    "sm_120": 101376, "gfx942": 65536, "gfx1100": 65536,
}  # fmt: skip

REGISTERS: Final = 255  # as many as a thread can have: beyond them it spills to memory


@dataclass(frozen=True)
class Compiled:
    """One kernel for one card; `stack` is what did not fit the registers, bytes a thread."""

    target: str
    kernel: str
    cut: int
    code: int
    shared: int
    shared_max: int
    registers: int
    stack: int

    def does_not_fit(self) -> bool:
        """Whether its threads spill to memory, or a program wants more than it may have."""
        return self.registers > REGISTERS or self.stack > 0 or self.shared > self.shared_max


class NthCut(Tuning):
    """Always the same candidate, or the last where there are fewer."""

    def __init__(self, index: int, cuts: Mapping[tuple[str, int], tuple[Cut, ...]]) -> None:
        super().__init__(cuts=cuts)
        self.index = index

    def cut(self, kernel: str, shape: tuple[int, ...], tokens: int, run: Run) -> Cut:
        candidates = self._cuts[kernel, tokens]
        return candidates[min(self.index, len(candidates) - 1)]


class NoCard:
    """What Triton asks of a driver, for a card that is not here."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.cut = 0
        self.found: list[Compiled] = []
        self.utils = self
        self.launcher_cls = lambda source, metadata: lambda *args: None
        nvidia = name.startswith("sm_")
        self._target = (
            GPUTarget("cuda", int(name[3:]), 32)
            if nvidia
            else GPUTarget("hip", name, 64 if name.startswith("gfx9") else 32)
        )

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> str:
        return self.name

    def get_current_stream(self, device: str) -> int:
        return 0

    def get_device_properties(self, device: str) -> dict[str, int]:
        return {"max_shared_mem": SHARED[self.name]}

    def load_binary(
        self, kernel: str, code: bytes, shared: int, device: str
    ) -> tuple[int, int, int, int, int]:
        registers, stack = resources(code) if self.name.startswith("sm_") else (0, 0)
        self.found.append(
            Compiled(
                self.name, kernel, self.cut, len(code), shared, SHARED[self.name], registers, stack
            )
        )
        return 0, 0, registers, stack, 1024

    def unload_module(self, module: int) -> None:
        pass


def resources(code: bytes) -> tuple[int, int]:
    """Registers and stack bytes a thread of a cubin, as the wheel's own cuobjdump tells."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        told = subprocess.run(
            [tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", told)
    assert found is not None, told
    return int(found[1]), int(found[2])


def compile_all(name: str, shapes: Sequence[dict[str, Any]]) -> Iterator[Compiled]:
    """Every kernel for one card: each shape at the default cut, the first one at all of them."""
    card = NoCard(name)
    triton.runtime.driver.set_active(card)
    turing = name == "sm_75"
    compute, cuts = (torch.float16, TURING_CUTS) if turing else (torch.bfloat16, CUTS)
    most = max(map(len, cuts.values()))
    for shape in shapes:
        model = build(shape)
        for card.cut in range(most if shape is shapes[0] else 1):
            gpu = Gpu("cpu", compute, NthCut(card.cut, cuts))
            forward = GpuForward(model, gpu, processors=1 << 16)  # every context in parts
            for batch, kv in steps(model, short=card.cut > 0):
                forward.forward(batch, kv)
            yield from card.found
            card.found.clear()


def main() -> int:
    """Cards, or all; `--one` compiles for one shape instead of all. 1 if a card has too little."""
    few = sys.argv[1:2] == ["--one"]
    found: list[Compiled] = []
    for name in sys.argv[1 + few :] or SHARED:
        for compiled in compile_all(name, SHAPES[:1] if few else SHAPES):
            print(json.dumps(asdict(compiled)), flush=True)
            found.append(compiled)
    return any(map(Compiled.does_not_fit, found))


if __name__ == "__main__":
    sys.exit(main())
