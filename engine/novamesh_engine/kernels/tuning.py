"""How a Triton kernel is cut: sane defaults, candidates to try, and what was measured here.

A choice is for one kernel at one shape on one device. Rules: choices are kept in a file for each
device and version of the kernels, so that no other card and no older kernel is followed; a file
that cannot be read or written is as good as none; without a measurement the default is taken.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, TypeAlias

import torch
import triton
from triton.runtime.errors import OutOfResources, PTXASError

Run: TypeAlias = Callable[["Cut"], None]
Timer: TypeAlias = Callable[[Callable[[], None]], float]

CHOICES_MAX: Final = 4096  # in a file; more are not a few models on one card but a mistake
_BYTES_MAX: Final = 1 << 20
# What a cut that does not fit a device raises, when it is compiled or when it runs.
_TOO_MUCH: Final = (OutOfResources, PTXASError, torch.OutOfMemoryError)


@dataclass(frozen=True, slots=True)
class Cut:
    """Rows and blocks of 64 weights that a program takes at a time, warps, pipeline stages."""

    rows: int
    groups: int
    warps: int
    stages: int = 2

    @property
    def launch(self) -> dict[str, int]:
        """As Triton names what is not a kernel's own."""
        return {"num_warps": self.warps, "num_stages": self.stages}


# By kernel and tokens of a program, the default first. Chosen by arithmetic, not yet by a clock: a
# program of the first four keeps 32 * rows * groups sums in the registers of 32 * warps threads.
CUTS: Final[dict[tuple[str, int], tuple[Cut, ...]]] = {
    ("rows", 1): (Cut(8, 8, 4), Cut(4, 16, 4), Cut(16, 4, 4)),
    ("scores", 1): (Cut(4, 8, 4), Cut(1, 32, 4)),
    ("gate_up", 1): (Cut(8, 8, 4), Cut(4, 16, 4), Cut(4, 8, 2)),
    ("down", 1): (Cut(8, 8, 4), Cut(4, 8, 2), Cut(16, 4, 4)),
    ("tile", 16): (Cut(32, 2, 4, 3), Cut(64, 2, 4, 3)),
    ("tile", 64): (Cut(64, 1, 4, 3), Cut(128, 1, 8, 3)),
    ("grouped_gate_up", 16): (Cut(32, 2, 4, 3), Cut(64, 1, 4, 3)),
    ("grouped_gate_up", 64): (Cut(32, 1, 4, 3), Cut(64, 1, 8, 3)),
    ("grouped_down", 16): (Cut(32, 1, 4, 3), Cut(32, 2, 8, 3)),
    ("grouped_down", 64): (Cut(64, 1, 8, 3), Cut(32, 1, 4, 3)),
    ("attend", 1): (Cut(32, 1, 4), Cut(64, 1, 8)),
}
# Triton uses no tensor cores before Ampere: a product there keeps its operands in registers, and
# what is larger than this does not fit them.
TURING_CUTS: Final = CUTS | {
    ("tile", 16): (Cut(32, 1, 8, 1),),
    ("tile", 64): (Cut(32, 1, 8, 1),),
    ("grouped_gate_up", 16): (Cut(16, 1, 8, 1),),
    ("grouped_gate_up", 64): (Cut(16, 1, 8, 1),),
    ("grouped_down", 16): (Cut(32, 1, 8, 1),),
    ("grouped_down", 64): (Cut(32, 1, 8, 1),),
    ("attend", 1): (Cut(16, 1, 8, 1),),
}


class Tuning:
    """The cuts of one device: `timer` gives the milliseconds of a run, None measures nothing."""

    def __init__(
        self,
        file: Path | None = None,
        timer: Timer | None = None,
        cuts: Mapping[tuple[str, int], tuple[Cut, ...]] = CUTS,
    ) -> None:
        self._cuts = cuts
        self._file = file
        self._timer = timer
        self._found = {} if file is None else _read(file)

    def cut(self, kernel: str, shape: tuple[int, ...], tokens: int, run: Run) -> Cut:
        """The cut for a kernel at a shape; what is not known is measured by `run` where possible.

        `run` must be repeatable: it is called many times with every candidate.
        """
        candidates = self._cuts[kernel, tokens]
        name = f"{kernel} {tokens} {'x'.join(map(str, shape))}"
        known = self._found.get(name)
        if known in candidates:
            return known
        if self._timer is None or len(candidates) == 1 or len(self._found) >= CHOICES_MAX:
            return candidates[0]
        times = {cut: self._time(run, cut) for cut in candidates}
        best = min(candidates, key=times.__getitem__)
        if times[best] == math.inf:
            return candidates[0]
        self._found[name] = best
        self._write()
        return best

    def _time(self, run: Run, cut: Cut) -> float:
        assert self._timer is not None
        try:
            return self._timer(lambda: run(cut))
        except _TOO_MUCH:
            return math.inf

    def _write(self) -> None:
        if self._file is None:
            return
        rows = {name: asdict(cut) for name, cut in sorted(self._found.items())}
        with contextlib.suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            fresh = self._file.with_suffix(f".{os.getpid()}")
            fresh.write_text(json.dumps(rows, indent=1))
            fresh.replace(self._file)  # whole, whoever else writes


def tuning_file(folder: Path, device: str) -> Path:
    """Where the choices of a device are kept, for these kernels and no others."""
    kernels = hashlib.sha256(triton.__version__.encode())
    for source in sorted(Path(__file__).with_name("triton").glob("*.py")):
        kernels.update(source.read_bytes())
    plain = "".join(letter if letter.isalnum() else "-" for letter in device)
    return folder / f"{plain[:80]}-{kernels.hexdigest()[:16]}.json"


def _read(file: Path) -> dict[str, Cut]:
    """What was measured before; nothing if the file is not ours."""
    try:
        with file.open("rb") as opened:
            rows = json.loads(opened.read(_BYTES_MAX))
        return {str(name): Cut(**row) for name, row in rows.items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}
