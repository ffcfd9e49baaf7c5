"""What follows attention in a layer: a mixture of experts, or one dense SwiGLU block.

The router stays float32; experts are stacks that stay packed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from novamesh_engine.kernels import reference
from novamesh_engine.kernels.reference import Matrix


@dataclass(frozen=True, slots=True)
class Router:
    """Which experts a token gets, and their weights; `weight` is float32 [E, H].

    softmax       the k largest of a softmax over all, scaled to sum to one if `renormalise`
    sparsemixer   GRIN's two experts, the nearly equal ones weighed by `jitter` (arXiv:2409.12136)
    """

    weight: Tensor
    kind: Literal["softmax", "sparsemixer"]
    experts_per_token: int
    renormalise: bool
    jitter: float

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [T, H] to weights float32 [T, k] and expert ids int64 [T, k]."""
        if self.kind == "sparsemixer":
            return reference.sparsemixer(x, self.weight, self.jitter)
        return reference.route(x, self.weight, self.experts_per_token, self.renormalise)


@dataclass(frozen=True, slots=True)
class SharedExpert:
    """An expert that every token gets, times sigmoid(gate · x); gate is float32 [1, H]."""

    gate_up: Matrix
    down: Matrix
    gate: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """x float32 [T, H] to float32 [T, H]."""
        return reference.shared_expert(x, self.gate_up, self.down, self.gate)


@dataclass(frozen=True, slots=True)
class MoE:
    """Routed experts: gate_up [E, 2F, H] (gate's rows first) and down [E, H, F]."""

    router: Router
    gate_up: Matrix
    down: Matrix
    shared: SharedExpert | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """x float32 [T, H] to float32 [T, H]."""
        routed = reference.experts(x, self.router(x), self.gate_up, self.down)
        return routed if self.shared is None else routed + self.shared(x)


@dataclass(frozen=True, slots=True)
class MLP:
    """A dense SwiGLU block: gate_up [2F, H] (gate's rows first) and down [H, F]."""

    gate_up: Matrix
    down: Matrix

    def __call__(self, x: Tensor) -> Tensor:
        """x float32 [T, H] to float32 [T, H]."""
        return reference.expert(x, self.gate_up, self.down)
