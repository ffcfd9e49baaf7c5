"""What follows attention, for few tokens and many: experts, a shared one, a dense block."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from novamesh_engine.kernels import choice, gpu_mlp
from novamesh_engine.kernels.gpu_mlp import PAIRS_MAX, GpuMLP
from novamesh_engine.kernels.tiers import TieredExperts
from novamesh_engine.models.moe import MLP, MoE, SharedExpert
from novamesh_engine.quant.codebook import NF4Matrix
from support.coarse_cuts import coarse_gpu
from support.random_layers import random, random_matrix, random_norm, random_router
from support.tiny_moe import relative

BOUND, HALF_BOUND = 1e-5, 3e-3
HIDDEN, EXPERTS = 64, 5
HALVES = ((torch.float32, BOUND), (torch.float16, HALF_BOUND))
NORM = random_norm(10, HIDDEN, centred=True, biased=True)
# As many as go pair by pair, one more, and enough for large tiles of the shared expert.
COUNTS = (
    (1, torch.float32, BOUND), (PAIRS_MAX, torch.float32, BOUND),
    (PAIRS_MAX + 1, torch.float32, BOUND), (33, torch.float32, BOUND),
    (PAIRS_MAX, torch.float16, HALF_BOUND), (PAIRS_MAX + 1, torch.float16, HALF_BOUND),
)  # fmt: skip


def make(form: str = "nf4", kind: str = "softmax", shared: bool = False) -> MoE:
    extra = SharedExpert(
        random_matrix(1, 128, HIDDEN, form=form), random_matrix(2, HIDDEN, 64, form=form),
        random(3, 1, HIDDEN),
    )  # fmt: skip
    return MoE(
        random_router(4, kind, EXPERTS, HIDDEN, 2),
        random_matrix(5, EXPERTS, 128, HIDDEN, form=form),
        random_matrix(6, EXPERTS, HIDDEN, 64, form=form), extra if shared else None,
    )  # fmt: skip


def all_slots(tokens: int) -> Tensor:
    return torch.full((tokens,), 1 << 15, dtype=torch.int32)


def off(mlp: MoE | MLP, tokens: int, compute: torch.dtype = torch.float32) -> float:
    """The distance from the definition, of what is added to the stream."""
    x = random(20, tokens, HIDDEN)
    found = GpuMLP(coarse_gpu(compute), mlp)(x, NORM, all_slots(tokens))
    return relative(found - x, mlp(NORM(x)))


@pytest.mark.parametrize(("tokens", "compute", "bound"), COUNTS)
def test_experts_with_one_that_every_token_gets(
    tokens: int, compute: torch.dtype, bound: float
) -> None:
    assert off(make(shared=True), tokens, compute) < bound


@pytest.mark.parametrize("kind", ["softmax", "sparsemixer"])
@pytest.mark.parametrize("form", ["nf4", "float16"])
@pytest.mark.parametrize("tokens", [1, 5])
def test_experts_alone(tokens: int, form: str, kind: str) -> None:
    assert off(make(form, kind), tokens) < BOUND


@pytest.mark.parametrize(("tokens", "compute", "bound"), COUNTS)
def test_a_dense_block(tokens: int, compute: torch.dtype, bound: float) -> None:
    dense = MLP(random_matrix(7, 128, HIDDEN), random_matrix(8, HIDDEN, 64))
    assert off(dense, tokens, compute) < bound


def test_a_plain_dense_block_of_odd_width() -> None:
    dense = MLP(
        random_matrix(7, 72, HIDDEN, form="float32"), random_matrix(8, HIDDEN, 36, form="float32")
    )
    assert off(dense, 2) < BOUND
    assert off(dense, 6) < BOUND


@pytest.mark.parametrize("tokens", [2, 5])
def test_an_effort_leaves_slots_empty(tokens: int) -> None:
    """None of them: the token passes, but for the expert that all get."""
    mlp, x, efforts = make(shared=True), random(20, tokens, HIDDEN), all_slots(tokens)
    assert mlp.shared is not None
    efforts[0] = 0
    found = GpuMLP(coarse_gpu(), mlp)(x, NORM, efforts)
    wanted = mlp(NORM(x))
    wanted[0] = mlp.shared(NORM(x[:1]))[0]
    assert relative(found - x, wanted) < BOUND
    alone = GpuMLP(coarse_gpu(), replace(mlp, shared=None))(x, NORM, efforts)
    assert torch.equal(alone[0], x[0])


@pytest.mark.parametrize("dense", [False, True])
def test_too_many_tokens_are_taken_in_pieces(dense: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last piece is smaller, each token keeps its effort, and nothing else changes."""
    mlp = MLP(random_matrix(7, 128, HIDDEN), random_matrix(8, HIDDEN, 64)) if dense else make()
    x, efforts = random(20, 7, HIDDEN), torch.arange(7, dtype=torch.int32) % 3
    whole = GpuMLP(coarse_gpu(), mlp)(x, NORM, efforts)
    monkeypatch.setattr(gpu_mlp, "SORTED_MAX", 3 if dense else 6)  # 3 tokens of two slots
    assert relative(GpuMLP(coarse_gpu(), mlp)(x, NORM, efforts), whole) < BOUND


@pytest.mark.skipif(not choice.look().runnable, reason="installed without a C++ compiler")
@pytest.mark.parametrize(("compute", "bound"), HALVES)
@pytest.mark.parametrize("tokens", [2, 5])
def test_experts_of_two_sides(tokens: int, compute: torch.dtype, bound: float) -> None:
    mlp, gpu = make(shared=True), coarse_gpu(compute)
    assert isinstance(mlp.gate_up, NF4Matrix)
    assert isinstance(mlp.down, NF4Matrix)
    native = choice.open_native(1, "exact", choice.look().runnable[-1])
    tiers = TieredExperts(gpu, native, (mlp.gate_up, mlp.down), [1, 3])
    x = random(20, tokens, HIDDEN)
    found = GpuMLP(gpu, mlp, tiers)(x, NORM, all_slots(tokens))
    assert relative(found - x, mlp(NORM(x))) < bound
