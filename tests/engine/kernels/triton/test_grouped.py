"""Experts of many tokens, tile by tile, equal the reference: ragged, empty and crowded ones."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from novamesh_engine.kernels import reference
from novamesh_engine.kernels.gpu import Gpu
from novamesh_engine.kernels.reference import Matrix
from support.coarse_cuts import coarse_gpu
from support.random_layers import random, random_matrix
from support.tiny_moe import relative

BOUND, HALF_BOUND = 1e-5, 2e-3
FORMS = ("nf4", "float32", "float16")
HALVES = ((torch.float32, BOUND), (torch.float16, HALF_BOUND))


def make(form: str, count: int, hidden: int, size: int) -> tuple[Matrix, Matrix]:
    gate_up = random_matrix(1, count, 2 * size, hidden, form=form)
    return gate_up, random_matrix(2, count, hidden, size, form=form)


def distance(gpu: Gpu, ids: Tensor, stack: tuple[Matrix, Matrix]) -> float:
    """From the reference, of what the experts add."""
    tokens, hidden = ids.shape[0], stack[0].shape[2]
    x, factors = random(3, tokens, hidden).to(gpu.compute), random(4, *ids.shape).abs()
    residual = random(5, tokens, hidden)
    wanted = reference.experts(x.float(), (factors, ids.long()), *stack)
    found = gpu.grouped(x, (ids, factors), *stack, residual)
    empty = (ids < 0).all(-1)
    assert torch.equal(found[empty], residual[empty])
    return relative(found - residual, wanted)


@given(
    st.integers(1, 24), st.integers(1, 3), st.integers(1, 5), st.integers(1, 2), st.integers(0, 99)
)  # fmt: skip
@settings(max_examples=3)
@pytest.mark.parametrize(("compute", "bound"), HALVES)
@pytest.mark.parametrize("form", FORMS)
def test_ragged_experts(
    form: str, compute: torch.dtype, bound: float, tokens: int, slots: int, count: int,
    blocks: int, seed: int,
) -> None:  # fmt: skip
    hidden, size = (blocks * 64, 128) if form == "nf4" else (blocks * 40, 104)
    rng = torch.Generator().manual_seed(seed)
    ids = torch.randint(-1, count, (tokens, slots), generator=rng, dtype=torch.int32)
    ids[0, 0] = 0  # the distance from nothing at all is no number
    assert distance(coarse_gpu(compute), ids, make(form, count, hidden, size)) < bound


@pytest.mark.parametrize("form", ["nf4", "float32"])
def test_a_crowd_takes_large_tiles(form: str) -> None:
    """More than one tile of 64 of one expert, a partial one of another, none of a third."""
    ids = torch.tensor([[2, -1]] * 70 + [[0, 2]] * 45, dtype=torch.int32)
    assert distance(coarse_gpu(), ids, make(form, 3, 64, 64)) < BOUND


@pytest.mark.parametrize("form", ["nf4", "float32"])
def test_the_default_cuts(form: str) -> None:
    ids = torch.tensor([[0, 1], [1, -1], [1, 0]], dtype=torch.int32)
    hidden, size = (128, 64) if form == "nf4" else (72, 40)
    assert distance(Gpu("cpu", torch.float32), ids, make(form, 2, hidden, size)) < BOUND


def test_empty_slots_may_hold_what_is_no_number() -> None:
    """Of factors, and of products that nobody wrote."""
    ids = torch.tensor([[0, -1], [-1, -1]], dtype=torch.int32)
    factors, stack = (
        torch.tensor([[1.0, torch.nan], [torch.inf, torch.nan]]),
        make("nf4", 1, 64, 64),
    )
    x = random(6, 2, 64)
    found = coarse_gpu().grouped(x, (ids, factors), *stack, torch.zeros(2, 64))
    wanted = reference.expert(x[:1], stack[0][0], stack[1][0])
    assert relative(found[:1], wanted) < BOUND
    assert torch.equal(found[1], torch.zeros(64))
