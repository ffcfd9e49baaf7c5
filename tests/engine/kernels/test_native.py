"""Every native operation of every instruction set equals the reference within its bound."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from novamesh_engine.kernels import choice, reference
from novamesh_engine.kernels.native import Native, UnsuitedError
from novamesh_engine.models.layers import Norm
from novamesh_engine.models.moe import Router
from novamesh_engine.quant.codebook import NF4Matrix, dequantize
from support.tiny_moe import relative

BOUND, ROUNDED = 1e-5, 2.5e-2
SETS = choice.look().runnable
pytestmark = pytest.mark.skipif(not SETS, reason="installed without a C++ compiler")


@pytest.fixture(params=SETS, scope="module")
def exact(request: pytest.FixtureRequest) -> Native:
    return choice.open_native(2, "exact", request.param)


@pytest.fixture(params=SETS, scope="module")
def rounded(request: pytest.FixtureRequest) -> Native:
    return choice.open_native(2, "int8", request.param)


@pytest.fixture(scope="module")
def definition() -> Native:
    return choice.open_native(1, "int8", "scalar")


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def random_nf4(seed: int, *shape: int) -> NF4Matrix:
    rng, (*rows, width) = torch.Generator().manual_seed(seed), shape
    packed = torch.randint(0, 256, (*rows, width // 2), generator=rng, dtype=torch.uint8)
    return NF4Matrix(packed, (torch.rand((*rows, width // 64), generator=rng) * 2).half())


seeds = st.integers(0, 2**31)
tokens_counts = st.integers(1, 30)
row_counts = st.integers(1, 150)
block_counts = st.integers(1, 35)


@given(tokens_counts, row_counts, st.integers(1, 5), seeds)
@settings(max_examples=30)
@pytest.mark.parametrize("kind", ["nf4", "float16", "float32"])
def test_linear(exact: Native, kind: str, tokens: int, rows: int, blocks: int, seed: int) -> None:
    x, bias = random(seed, tokens, blocks * 64), random(seed + 2, rows)
    weight: Tensor | NF4Matrix = random_nf4(seed, rows, blocks * 64)
    if kind != "nf4":
        weight = random(seed + 1, rows, blocks * 64).to(getattr(torch, kind))
    wide = dequantize(weight) if isinstance(weight, NF4Matrix) else weight.float()
    magnitude = x.abs() @ wide.abs().T  # a sum that cancels is only as exact as its terms
    found = exact.linear(x, weight, bias if seed % 2 else None)
    wanted = reference.linear(x, weight, bias if seed % 2 else None)
    assert float((found - wanted).norm() / magnitude.norm()) < 1e-6


@given(tokens_counts, row_counts, block_counts, seeds)
@settings(max_examples=30)
def test_rounded_products_are_the_same_bits_in_every_set(
    rounded: Native, definition: Native, tokens: int, rows: int, blocks: int, seed: int
) -> None:
    """By rows and by tiles, for one token and for many, on one thread and on two."""
    x, weight = random(seed, tokens, blocks * 64), random_nf4(seed, rows, blocks * 64)
    found = rounded.linear(x, weight)
    assert torch.equal(found, definition.linear(x, weight))
    at = seed % tokens
    assert torch.equal(found[at : at + 1], rounded.linear(x[at : at + 1].clone(), weight))
    if tokens * rows > 200:
        assert relative(found, reference.linear(x, weight)) < ROUNDED


def test_rounding_withstands_what_activations_may_be(rounded: Native, definition: Native) -> None:
    """Nothing at all, too little to round, one coordinate that outweighs all, the largest."""
    weight, x = random_nf4(1, 48, 192), random(2, 12, 192)
    x[0], x[1], x[2, 5], x[3] = 0.0, 1e-38, 1e6, 3e38 / 192
    found = rounded.linear(x, weight)
    assert torch.equal(found, definition.linear(x, weight))
    assert float(found[:2].abs().max()) < 1e-30
    assert relative(found[2], reference.linear(x[2:3], weight)[0]) < ROUNDED


@given(st.integers(1, 40), st.integers(2, 6), st.integers(1, 3), st.integers(1, 3), seeds)
@settings(max_examples=25)
@pytest.mark.parametrize("kind", ["softmax", "sparsemixer"])
def test_routed_experts(
    exact: Native, rounded: Native, kind: str, tokens: int, count: int, hidden: int, size: int,
    seed: int,
) -> None:  # fmt: skip
    hidden, size = hidden * 64, size * 64
    x = random(seed, tokens, hidden) * 0.5
    slots = 2 if kind == "sparsemixer" else 1 + seed % count
    router = Router(random(seed + 1, count, hidden) * 0.1, kind, slots, bool(seed % 2), 0.01)  # type: ignore[arg-type]
    gate_up = random_nf4(seed + 2, count, 2 * size, hidden)
    down = random_nf4(seed + 3, count, hidden, size)
    routing, wanted = exact.route(x, router), router(x)
    assert torch.equal(routing[1], wanted[1])
    assert relative(routing[0], wanted[0]) < BOUND
    defined = reference.experts(x, routing, gate_up, down)
    found = exact.experts(x, routing, gate_up, down)
    assert relative(found, defined) < BOUND
    wide = dequantize(gate_up), dequantize(down)
    assert relative(exact.experts(x, routing, *wide), found) < BOUND
    assert relative(exact.experts(x, routing, gate_up, wide[1]), found) < BOUND
    assert relative(rounded.experts(x, routing, gate_up, down), defined) < 2 * ROUNDED


def test_a_dense_network_is_a_stack_of_one(exact: Native) -> None:
    x, gate_up, down = random(1, 3, 64), random_nf4(2, 384, 64), random_nf4(3, 64, 192)
    every = torch.ones((3, 1)), torch.zeros((3, 1), dtype=torch.int64)
    found = exact.experts(x, every, gate_up, down)
    assert relative(found, reference.expert(x, gate_up, down)) < BOUND


@given(st.integers(1, 9), st.integers(1, 200), seeds, st.booleans(), st.booleans())
@settings(max_examples=20)
def test_norms(
    exact: Native, tokens: int, width: int, seed: int, centred: bool, biased: bool
) -> None:
    bias = random(seed + 2, width) if biased and centred else None
    norm = Norm(random(seed + 1, width), bias, 1e-5, centred)
    x = random(seed, tokens, width) + 0.5
    assert torch.allclose(exact.normalise(x, norm), norm(x), rtol=2e-5, atol=2e-5)


@given(st.integers(2, 20), seeds)
@settings(max_examples=15)
def test_a_token_does_not_depend_on_its_neighbours(exact: Native, tokens: int, seed: int) -> None:
    """Bit for bit: what makes an answer independent of the batch it was computed in."""
    x, weight = random(seed, tokens, 128), random_nf4(seed, 70, 128)
    gate_up, down = random_nf4(seed + 1, 4, 128, 128), random_nf4(seed + 2, 4, 128, 64)
    router, at = Router(random(seed + 3, 4, 128), "softmax", 2, True, 0.0), seed % tokens
    one = x[at : at + 1].clone()
    assert torch.equal(exact.linear(x, weight)[at : at + 1], exact.linear(one, weight))
    routed, alone = exact.route(x, router), exact.route(one, router)
    together = exact.experts(x, routed, gate_up, down)[at : at + 1]
    assert torch.equal(together, exact.experts(one, alone, gate_up, down))


def test_equal_scores_go_to_the_lower_expert(exact: Native) -> None:
    weights, ids = exact.route(
        random(1, 3, 64), Router(torch.zeros((5, 64)), "softmax", 2, True, 0)
    )
    assert ids.tolist() == [[0, 1]] * 3
    assert torch.equal(weights, torch.full((3, 2), 0.5))


def test_what_cpp_does_not_take_is_said(exact: Native) -> None:
    x, router = random(1, 3, 64), Router(random(2, 5, 24), "softmax", 1, True, 0)
    for call in (
        lambda: exact.linear(random(3, 3, 24), random(4, 5, 24)),
        lambda: exact.linear(x, random(4, 5, 64).bfloat16()),
        lambda: exact.linear(x.half(), random(4, 5, 64)),
        lambda: exact.linear(x.T.contiguous().T, random(4, 5, 64)),
        lambda: exact.route(random(3, 3, 24), router),
    ):
        with pytest.raises(UnsuitedError):
            call()


def test_a_slot_without_an_expert_adds_nothing(exact: Native, rounded: Native) -> None:
    """Its factor may be anything; a token may have none at all."""
    gate_up, down = random_nf4(1, 3, 128, 64), random_nf4(2, 3, 64, 64)
    x, weights = random(3, 4, 64), random(4, 4, 2)
    ids = torch.tensor([[-1, 1], [2, -1], [-1, -1], [0, 2]])
    wanted = reference.experts(x, (weights, ids), gate_up, down)
    weights[ids < 0] = 1e30
    found = exact.experts(x, (weights, ids), gate_up, down)
    assert relative(found, wanted) < BOUND
    assert torch.equal(found[2], torch.zeros(64))
    assert relative(rounded.experts(x, (weights, ids), gate_up, down), wanted) < 2 * ROUNDED
    alone = exact.experts(x[2:3].clone(), (weights[2:3].clone(), ids[2:3].clone()), gate_up, down)
    assert torch.equal(alone, torch.zeros(1, 64))


def test_an_expert_out_of_range_is_not_read(exact: Native) -> None:
    gate_up, down = random_nf4(1, 2, 128, 64), random_nf4(2, 2, 64, 64)
    for wrong in (2, -2):
        routing = torch.ones((1, 1)), torch.tensor([[wrong]])
        with pytest.raises(AssertionError, match="index out of range"):
            exact.experts(random(3, 1, 64), routing, gate_up, down)


def test_no_memory_is_an_error_that_python_knows(exact: Native) -> None:
    with pytest.raises(MemoryError):
        exact.done(-1)


def test_shapes_that_do_not_fit_are_refused_before_c(exact: Native) -> None:
    x, nf4 = random(0, 2, 64), random_nf4(1, 4, 64)
    ids, chances = torch.zeros(2, 1, dtype=torch.int64), torch.ones(2, 1)
    down, narrow = random(2, 2, 64, 64), random(3, 2, 64, 64)
    for call in (
        lambda: exact.normalise(x, Norm(torch.ones(32), None, 1e-5, False)),
        lambda: exact.linear(x, random(5, 4, 128)),
        lambda: exact.linear(x, random(5, 4, 64), random(6, 3)),
        lambda: exact.linear(x, NF4Matrix(nf4.packed, nf4.absmax[:2])),
        lambda: exact.route(x, Router(random(6, 4, 128), "softmax", 2, True, 0)),
        lambda: exact.route(x, Router(random(6, 4, 64), "softmax", 5, True, 0)),
        lambda: exact.experts(x, (chances, ids), narrow, down),
    ):
        with pytest.raises(ValueError, match="do not fit"):
            call()


def test_reading_touches_every_byte(exact: Native) -> None:
    """The sum itself means nothing, but it must depend on what is read."""
    data = torch.zeros(3 << 20, dtype=torch.uint8)
    assert exact.read(data) == 0
    data[1 << 20] = 1
    assert exact.read(data) != 0
