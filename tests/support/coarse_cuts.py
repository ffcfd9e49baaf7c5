"""Cuts for the interpreter, which takes some 30 ms a program whatever its size: few large ones."""

from __future__ import annotations

import torch

from novamesh_engine.kernels.gpu import Gpu
from novamesh_engine.kernels.tuning import Cut, Run, Tuning

ROWS_MAX = 256
GROUPS_MAX = 4


class CoarseCuts(Tuning):
    """A program takes as much of a shape as it may."""

    def cut(self, kernel: str, shape: tuple[int, ...], tokens: int, run: Run) -> Cut:
        """No choice depends on a measurement."""
        if kernel == "attend":
            return Cut(32, 1, 4)
        rows, groups = max(shape[:2]), -(-max(shape[:2]) // 64)
        return Cut(min(ROWS_MAX, _power(rows)), min(GROUPS_MAX, _power(groups)), 4)


def coarse_gpu(compute: torch.dtype = torch.float32) -> Gpu:
    """The operations on a CPU, in as few programs as there can be."""
    return Gpu("cpu", compute, CoarseCuts())


def _power(number: int) -> int:
    return 1 << (number - 1).bit_length()
