"""One mixture of experts: a float32 router and stacks of SwiGLU experts that stay packed."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from novamesh_engine.kernels.reference import Kernels, Matrix


@dataclass(frozen=True, slots=True)
class MoE:
    """router [E, H]; gate_up [E, 2F, H] (gate's rows first) and down [E, H, F]."""

    router: Tensor
    gate_up: Matrix
    down: Matrix
    experts_per_token: int
    kernels: Kernels

    def __call__(self, x: Tensor) -> Tensor:
        """x float32 [T, H] to float32 [T, H]."""
        routing = self.kernels.route(x, self.router, self.experts_per_token)
        return self.kernels.experts(x, routing, self.gate_up, self.down)
