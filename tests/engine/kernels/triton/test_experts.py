"""Experts of a few tokens, pair by pair, equal the reference: routed there or given."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from novamesh_engine.kernels import reference
from novamesh_engine.kernels.gpu import Gpu
from support.coarse_cuts import coarse_gpu
from support.random_layers import random, random_matrix, random_router
from support.tiny_moe import relative

BOUND = 1e-5
FORMS = ("nf4", "float32", "float16")


@given(
    st.integers(1, 3), st.integers(2, 5), st.integers(1, 2), st.integers(1, 2), st.integers(0, 99)
)  # fmt: skip
@settings(max_examples=3)
@pytest.mark.parametrize("kind", ["softmax", "sparsemixer"])
@pytest.mark.parametrize("form", FORMS)
def test_routed_experts(
    form: str, kind: str, tokens: int, count: int, blocks: int, wide: int, seed: int
) -> None:
    """Plain ones of any width; each token fills as many slots as its effort allows."""
    hidden, size = (blocks * 64, wide * 64) if form == "nf4" else (blocks * 40, wide * 24)
    slots = 2 if kind == "sparsemixer" else 1 + seed % min(3, count)
    router = random_router(seed, kind, count, hidden, slots)
    gate_up = random_matrix(seed + 1, count, 2 * size, hidden, form=form)
    down = random_matrix(seed + 2, count, hidden, size, form=form)
    x, residual = random(seed + 3, tokens, hidden), random(seed + 4, tokens, hidden)
    efforts = torch.arange(tokens, dtype=torch.int32) + seed % 2
    weights, ids = router(x)
    ids = torch.where(torch.arange(slots) < efforts[:, None], ids, -1)
    wanted = residual + reference.experts(x, (weights, ids), gate_up, down)
    scores = x @ router.weight.T
    found = coarse_gpu().experts(x, scores, router, efforts, gate_up, down, residual)
    assert relative(found, wanted) < BOUND


@pytest.mark.parametrize("form", FORMS)
def test_given_experts_some_slots_empty(form: str) -> None:
    """A token with none at all, one with its first slot empty, one that has an expert twice."""
    gate_up = random_matrix(1, 4, 128, 64, form=form)
    down = random_matrix(2, 4, 64, 64, form=form)
    x, residual, factors = random(3, 4, 64), random(4, 4, 64), random(5, 4, 3)
    ids = torch.tensor([[-1, -1, -1], [-1, 2, 0], [1, 1, -1], [3, 0, 2]], dtype=torch.int32)
    wanted = residual + reference.experts(x, (factors, ids.long()), gate_up, down)
    found = coarse_gpu().pairs(x, (ids, factors), gate_up, down, residual)
    assert relative(found, wanted) < BOUND
    assert torch.equal(found[0], residual[0])


def test_an_empty_slot_reads_nothing() -> None:
    """Neither weights nor a factor that is no number."""
    gate_up, down = (torch.full(shape, torch.nan) for shape in ((1, 8, 4), (1, 4, 4)))
    slots = torch.full((1, 2), -1, dtype=torch.int32), torch.full((1, 2), torch.nan)
    x, residual = random(1, 1, 4), random(2, 1, 4)
    assert torch.equal(coarse_gpu().pairs(x, slots, gate_up, down, residual), residual)


def test_the_default_cuts() -> None:
    """Blocks of rows, the last ones partial; gate and up are not mixed at the seam."""
    gate_up = random_matrix(1, 3, 40, 64, form="float32")
    down = random_matrix(2, 3, 64, 20, form="float32")
    router, x = random_router(3, "softmax", 3, 64, 2), random(4, 1, 64)
    weights, ids = router(x)
    wanted = x + reference.experts(x, (weights, ids), gate_up, down)
    efforts = torch.full((1,), 2, dtype=torch.int32)
    gpu = Gpu("cpu", torch.float32)
    found = gpu.experts(x, x @ router.weight.T, router, efforts, gate_up, down, x)
    assert relative(found, wanted) < BOUND
