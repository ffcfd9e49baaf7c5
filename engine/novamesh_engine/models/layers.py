"""The small parts of a layer: normalisation and linear products.

Each is weights, and the reference function that defines what it does with them. A fast forward
walks the same values once, at load.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from novamesh_engine.kernels import reference
from novamesh_engine.kernels.reference import Matrix


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear layer whose weight [N, K] is plain or packed NF4; `bias` is float32 [N]."""

    weight: Matrix
    bias: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """x [T, K] to float32 [T, N]."""
        return reference.linear(x, self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class Norm:
    """Normalisation over the last dimension, `weight` and `bias` [H] float32.

    `centred` is LayerNorm; otherwise RMS norm, which has no bias.
    """

    weight: Tensor
    bias: Tensor | None
    eps: float
    centred: bool

    def __call__(self, x: Tensor) -> Tensor:
        """x [..., H] to float32 [..., H]."""
        if self.centred:
            return reference.layer_norm(x, self.weight, self.bias, self.eps)
        return reference.rms_norm(x, self.weight, self.eps)
