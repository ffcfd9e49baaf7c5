"""A mixture of experts is the weighted sum of the chosen ones."""

from __future__ import annotations

import torch

from novamesh_engine.kernels import select
from novamesh_engine.kernels.reference import KERNELS, expert
from novamesh_engine.models.moe import MoE


def test_the_chosen_experts_are_weighed_and_added() -> None:
    rng = torch.Generator().manual_seed(1)
    router = torch.randn((3, 64), generator=rng)
    gate_up = torch.randn((3, 256, 64), generator=rng) * 0.1
    down = torch.randn((3, 64, 128), generator=rng) * 0.1
    x = torch.randn((5, 64), generator=rng)
    chances = torch.softmax(x @ router.T, dim=-1)
    best = chances.topk(2).values
    kept = torch.where(chances >= best[:, 1:], chances, 0.0) / best.sum(-1, keepdim=True)
    wanted = sum(kept[:, e : e + 1] * expert(x, gate_up[e], down[e]) for e in range(3))
    for kernels in (KERNELS, select()):
        found = MoE(router, gate_up, down, 2, kernels)(x)
        assert torch.allclose(found, wanted, atol=1e-5)
