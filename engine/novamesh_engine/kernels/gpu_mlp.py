"""What follows attention in a layer on a device: routed experts, a shared one, a dense block."""

from __future__ import annotations

from typing import Final, TypeAlias

import torch
from torch import Tensor

from novamesh_engine.kernels.gpu import SORTED_MAX, Gpu
from novamesh_engine.kernels.reference import Matrix
from novamesh_engine.kernels.tiers import TieredExperts
from novamesh_engine.models.layers import Norm
from novamesh_engine.models.moe import MLP, MoE
from novamesh_engine.quant.codebook import NF4Matrix

# Tokens up to which each (token, slot) pair reads its expert by itself.
PAIRS_MAX: Final = 4

Stack: TypeAlias = tuple[Matrix, Matrix]
Slots: TypeAlias = tuple[Tensor, Tensor]


class GpuMLP:
    """One layer's; `tiers` are its routed experts where only some lie on the device."""

    def __init__(self, gpu: Gpu, mlp: MoE | MLP, tiers: TieredExperts | None = None) -> None:
        self._gpu = gpu
        self._mlp = mlp
        self._tiers = tiers
        self._shared: Stack | None = None
        if isinstance(mlp, MLP):
            self._shared = _stack_of_one(mlp.gate_up), _stack_of_one(mlp.down)
            return
        self._rows = mlp.router.weight  # what scores a token: the router, and the shared gate
        if mlp.shared is not None:
            self._shared = _stack_of_one(mlp.shared.gate_up), _stack_of_one(mlp.shared.down)
            self._rows = torch.cat((self._rows, mlp.shared.gate))

    def __call__(self, x: Tensor, norm: Norm, efforts: Tensor) -> Tensor:
        """x + mlp(norm(x)), float32 [T, H]; efforts int32 [T] are the slots that may be filled."""
        slots = 1 if isinstance(self._mlp, MLP) else self._mlp.router.experts_per_token
        most = SORTED_MAX // slots
        if x.shape[0] <= most:
            return self._run(x, norm, efforts)
        pieces = zip(torch.split(x, most), torch.split(efforts, most), strict=True)
        return torch.cat([self._run(some, norm, effort) for some, effort in pieces])

    def _run(self, x: Tensor, norm: Norm, efforts: Tensor) -> Tensor:
        gpu, mlp = self._gpu, self._mlp
        few = x.shape[0] <= PAIRS_MAX
        if isinstance(mlp, MLP):
            normed = gpu.normalise(x, norm, torch.float32 if few else gpu.compute)
            return self._add_shared(normed, torch.ones_like(x[:, :1]), x, few)
        exact = few or self._tiers is not None
        normed, scores = gpu.scores(
            x, norm, self._rows, torch.float32 if exact else gpu.compute
        )  # fmt: skip
        if self._tiers is not None:
            out = self._tiers(normed, gpu.route(scores, mlp.router, efforts), x)
        elif few:
            out = gpu.experts(normed, scores, mlp.router, efforts, mlp.gate_up, mlp.down, x)
        else:
            slots = gpu.route(scores, mlp.router, efforts)
            out = gpu.grouped(normed, slots, mlp.gate_up, mlp.down, x)
        if mlp.shared is None:
            return out
        gate = torch.sigmoid(scores[:, mlp.router.weight.shape[0] :])
        return self._add_shared(normed if few else normed.to(gpu.compute), gate, out, few)

    def _add_shared(self, normed: Tensor, gate: Tensor, residual: Tensor, few: bool) -> Tensor:
        """residual + gate [T, 1] times the expert that every token gets."""
        assert self._shared is not None
        slots = torch.zeros_like(gate, dtype=torch.int32), gate.contiguous()
        if few:
            return self._gpu.pairs(normed, slots, *self._shared, residual)
        return self._gpu.grouped(normed, slots, *self._shared, residual)


def _stack_of_one(matrix: Matrix) -> Matrix:
    if isinstance(matrix, NF4Matrix):
        return NF4Matrix(matrix.packed[None], matrix.absmax[None])
    return matrix[None]
