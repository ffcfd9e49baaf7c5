"""A mixture of experts is the weighted sum of the chosen ones, plus the shared one."""

from __future__ import annotations

import torch
from torch import Tensor

from novamesh_engine.kernels.reference import expert
from novamesh_engine.models.moe import MLP, MoE, Router, SharedExpert


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.1


def test_the_chosen_experts_are_weighed_and_added() -> None:
    router, gate_up, down = draw(1, 3, 64) * 10, draw(2, 3, 256, 64), draw(3, 3, 64, 128)
    x = draw(4, 5, 64) * 10
    chances = torch.softmax(x @ router.T, dim=-1)
    best = chances.topk(2).values
    kept = torch.where(chances >= best[:, 1:], chances, 0.0)
    for renormalise in (True, False):
        shares = kept / best.sum(-1, keepdim=True) if renormalise else kept
        wanted = sum(shares[:, e : e + 1] * expert(x, gate_up[e], down[e]) for e in range(3))
        found = MoE(Router(router, "softmax", 2, renormalise, 0.0), gate_up, down)(x)
        assert torch.allclose(found, wanted, atol=1e-5)


def test_a_shared_expert_is_gated_and_added() -> None:
    router = Router(draw(5, 2, 64), "softmax", 1, True, 0.0)
    gate_up, down = draw(6, 2, 128, 64), draw(7, 2, 64, 64)
    shared = SharedExpert(draw(8, 192, 64), draw(9, 64, 96), draw(10, 1, 64) * 10)
    x = draw(11, 4, 64) * 10
    alone = MoE(router, gate_up, down)(x)
    open_ = torch.sigmoid(x @ shared.gate.T)
    wanted = alone + open_ * MLP(shared.gate_up, shared.down)(x)
    assert torch.allclose(MoE(router, gate_up, down, shared)(x), wanted, atol=1e-6)


def test_sparsemixer_weighs_only_near_scores() -> None:
    """Scores 4, 3.99 and 1: the near one shares the first weight; the second has no rival."""
    scores = torch.tensor([[4.0, 3.99, 1.0], [-1.0, -3.0, -2.0]])
    weights, ids = Router(torch.eye(3), "sparsemixer", 2, False, 0.01)(scores)
    assert ids.tolist() == [[0, 1], [0, 2]]
    near = torch.sigmoid(torch.tensor(0.01))
    assert torch.allclose(weights, torch.stack((torch.stack((near, torch.tensor(1.0))),
                                                torch.ones(2))))  # fmt: skip
