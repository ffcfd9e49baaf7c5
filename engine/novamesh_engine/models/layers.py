"""The small parts of a layer: normalisation, linear products and rotary angles.

Each is weights plus the kernel that applies them. Nothing here chooses a kernel or a device.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from novamesh_engine.kernels.reference import Kernels, Matrix


@dataclass(frozen=True, slots=True)
class Linear:
    """A bias-free linear layer whose weight [N, K] is plain or packed NF4."""

    weight: Matrix
    kernels: Kernels

    def __call__(self, x: Tensor) -> Tensor:
        """x [T, K] to float32 [T, N]."""
        return self.kernels.linear(x, self.weight)


@dataclass(frozen=True, slots=True)
class RMSNorm:
    """Root-mean-square normalisation with a weight [H]."""

    weight: Tensor
    eps: float
    kernels: Kernels

    def __call__(self, x: Tensor) -> Tensor:
        """x [T, H] to float32 [T, H]."""
        return self.kernels.rms_norm(x, self.weight, self.eps)


@dataclass(frozen=True, slots=True)
class Rotary:
    """Rotary angles: frequencies [D / 2] in radians per position."""

    frequencies: Tensor

    @classmethod
    def create(cls, head_dim: int, theta: float, device: str) -> Rotary:
        """The default rotary embedding: theta ** (-2i / D)."""
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
        return cls(1.0 / theta**exponents)

    def angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin, each float32 [T, D / 2], for positions [T]."""
        angles = positions.float().unsqueeze(1) * self.frequencies
        return angles.cos(), angles.sin()
