"""Routing on a device: scores, the experts of a slot and their weights, pairs sorted by expert."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from novamesh_engine.kernels import reference
from novamesh_engine.kernels.gpu import PAIRS, Gpu, Sorted
from novamesh_engine.models.moe import Router
from support.coarse_cuts import coarse_gpu
from support.random_layers import random, random_norm, random_router
from support.tiny_moe import relative

BOUND = 1e-6


def whole(tokens: int) -> Tensor:
    """Every slot of every token may be filled."""
    return torch.full((tokens,), 1 << 15, dtype=torch.int32)


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("experts", [1, 6, 20])
def test_scores_and_the_normed_rows(experts: int, centred: bool) -> None:
    """One expert, a partial block of them, more than one block."""
    x, rows = random(1, 2, 100) * 3, random(2, experts, 100)
    norm = random_norm(3, 100, centred, centred)
    for gpu in (coarse_gpu(), Gpu("cpu", torch.float32)):
        normed, scores = gpu.scores(x, norm, rows, torch.float16)
        assert normed.dtype == torch.float16
        assert relative(normed, norm(x)) < 1e-3
        assert relative(scores, norm(x) @ rows.T) < BOUND


@given(st.integers(1, 5), st.integers(2, 20), st.integers(1, 4), st.booleans(), st.integers(0, 99))
@settings(max_examples=8)
@pytest.mark.parametrize("kind", ["softmax", "sparsemixer"])
def test_a_route_is_that_of_the_reference(
    kind: str, tokens: int, experts: int, slots: int, renormalise: bool, seed: int
) -> None:
    slots = 2 if kind == "sparsemixer" else min(slots, experts)
    router = replace(random_router(seed, kind, experts, 16, slots), renormalise=renormalise)
    x = random(seed + 1, tokens, 16)
    ids, factors = coarse_gpu().route(x @ router.weight.T, router, whole(tokens))
    weights, wanted = router(x)
    assert torch.equal(ids.long(), wanted)
    assert relative(factors, weights) < BOUND


@pytest.mark.parametrize("kind", ["softmax", "sparsemixer"])
def test_slots_beyond_an_effort_are_empty(kind: str) -> None:
    router, x = random_router(1, kind, 6, 16, 2), random(2, 3, 16)
    efforts = torch.tensor([0, 1, 2], dtype=torch.int32)
    ids, factors = coarse_gpu().route(x @ router.weight.T, router, efforts)
    weights, wanted = router(x)
    full = torch.arange(2) < efforts[:, None]
    assert torch.equal(ids.long(), torch.where(full, wanted, -1))
    assert relative(factors, torch.where(full, weights, 0.0)) < BOUND


@pytest.mark.parametrize("kind", ["softmax", "sparsemixer"])
@pytest.mark.parametrize("score", [0.0, -1.0, 2.5])
def test_equal_scores_go_to_the_lower_expert(score: float, kind: str) -> None:
    router = Router(torch.zeros(5, 4), kind, 2, kind == "softmax", 0.01)  # type: ignore[arg-type]
    ids, factors = coarse_gpu().route(torch.full((1, 5), score), router, whole(1))
    assert ids.tolist() == [[0, 1]]
    wanted = [0.5, 0.5] if kind == "softmax" else [1 / 5, 1 / 4]
    assert factors[0].tolist() == pytest.approx(wanted)


def test_scores_may_be_wider_than_the_router() -> None:
    """The last ones are a shared expert's gate, whatever it says."""
    router, scores = random_router(1, "softmax", 6, 16, 3), random(2, 4, 7)
    scores[:, 6] = 100
    ids, factors = coarse_gpu().route(scores, router, whole(4))
    wanted = torch.softmax(scores[:, :6], -1).topk(3)
    assert torch.equal(ids.long(), wanted.indices)
    assert relative(factors, wanted.values / wanted.values.sum(-1, keepdim=True)) < BOUND


def groups(found: Sorted) -> list[tuple[int, list[int]]]:
    """The pairs of each tile in use, padding left out."""
    tiles = found.order.view(-1, found.tokens).tolist()
    owners = found.experts.tolist()
    used = [(owner, [pair for pair in tile if pair >= 0])
            for owner, tile in zip(owners, tiles, strict=True) if owner >= 0]  # fmt: skip
    unused = [tile for owner, tile in zip(owners, tiles, strict=True) if owner < 0]
    assert all(pair < 0 for tile in unused for pair in tile)
    return used


def check_sorted(ids: Tensor, experts: int, tokens: int) -> None:
    wanted = []
    for expert, token, slot in reference.dispatch(ids):
        pairs = (token * ids.shape[1] + slot).tolist()
        wanted += [(expert, pairs[at : at + tokens]) for at in range(0, len(pairs), tokens)]
    assert groups(coarse_gpu().sort(ids, experts, tokens)) == wanted


@given(
    st.integers(1, 60), st.integers(1, 4), st.integers(1, 9), st.sampled_from([1, 16]),
    st.integers(0, 999),
)  # fmt: skip
@settings(max_examples=10)
def test_pairs_are_sorted_by_expert(
    count: int, slots: int, experts: int, tokens: int, seed: int
) -> None:
    """In order of token and slot, on tiles of their own, empty slots nowhere."""
    rng = torch.Generator().manual_seed(seed)
    ids = torch.randint(-1, experts, (count, slots), generator=rng, dtype=torch.int32)
    check_sorted(ids, experts, tokens)


@pytest.mark.parametrize("expert", [-1, 0, 4])
def test_all_pairs_may_be_of_one_expert_or_none(expert: int) -> None:
    check_sorted(torch.full((40, 2), expert, dtype=torch.int32), 5, 16)


@pytest.mark.parametrize("pairs", [PAIRS, PAIRS + 1, 5 * PAIRS])
def test_pairs_of_several_blocks(pairs: int) -> None:
    rng = torch.Generator().manual_seed(pairs)
    check_sorted(torch.randint(-1, 7, (pairs, 1), generator=rng, dtype=torch.int32), 7, 16)
