"""Linear layers in Triton equal the reference, for rows and for tiles, with all that goes along."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from novamesh_engine.kernels import reference
from novamesh_engine.kernels.gpu import Gpu
from novamesh_engine.kernels.reference import Matrix
from novamesh_engine.quant.codebook import NF4Matrix, dequantize
from support.coarse_cuts import coarse_gpu
from support.random_layers import random, random_matrix, random_norm
from support.tiny_moe import relative

BOUND, HALF_BOUND = 1e-6, 1e-3
FORMS = ("nf4", "float32", "float16")
HALVES = ((torch.float32, BOUND), (torch.float16, HALF_BOUND))


def off(found: Tensor, wanted: Tensor, x: Tensor, weight: Matrix) -> float:
    """Distance by the terms of a product: a sum that cancels is only as exact as those."""
    wide = dequantize(weight) if isinstance(weight, NF4Matrix) else weight.float()
    return float((found - wanted).norm() / (1 + x.float().abs() @ wide.abs().T).norm())


@given(st.integers(1, 3), st.integers(1, 70), st.integers(1, 3), st.integers(0, 15))
@settings(max_examples=6)
@pytest.mark.parametrize("form", FORMS)
def test_rows(form: str, tokens: int, rows: int, blocks: int, traits: int) -> None:
    """With or without a bias, a residual and a norm, RMS or LayerNorm with or without a shift."""
    width = blocks * 64 - (0 if form == "nf4" else traits)
    x, weight = random(1, tokens, width) * 3 + 1, random_matrix(2, rows, width, form=form)
    bias = random(3, rows) if traits & 1 else None
    residual = random(4, tokens, rows) if traits & 2 else None
    norm = random_norm(5, width, bool(traits & 8), traits & 12 == 12) if traits & 4 else None
    normed = x if norm is None else norm(x)
    wanted = reference.linear(normed, weight, bias)
    wanted = wanted if residual is None else wanted + residual
    found = coarse_gpu().linear(x, weight, bias, norm, residual)
    assert off(found, wanted, normed, weight) < BOUND


@given(st.integers(1, 40), st.integers(1, 300), st.integers(1, 5), st.integers(0, 63))
@settings(max_examples=4)
@pytest.mark.parametrize(("compute", "bound"), HALVES)
@pytest.mark.parametrize("form", FORMS)
def test_tiles(
    form: str, compute: torch.dtype, bound: float, tokens: int, rows: int, blocks: int, traits: int
) -> None:
    width = blocks * 64 - (0 if form == "nf4" else traits)
    x, weight = random(1, tokens, width).to(compute), random_matrix(2, rows, width, form=form)
    bias = random(3, rows) if traits & 1 else None
    residual = random(4, tokens, rows) if traits & 2 else None
    wanted = reference.linear(x, weight, bias)
    wanted = wanted if residual is None else wanted + residual
    found = coarse_gpu(compute).tiles(x, weight, bias, residual)
    assert off(found, wanted, x, weight) < bound


@pytest.mark.parametrize("form", FORMS)
def test_the_default_cuts(form: str) -> None:
    """What runs on a device that nobody measured: several programs, the last ones partial."""
    gpu, weight = Gpu("cpu", torch.float32), random_matrix(1, 21, 128, form=form)
    x, norm, residual = random(2, 2, 128), random_norm(3, 128), random(4, 2, 21)
    wanted = reference.linear(norm(x), weight) + residual
    assert relative(gpu.linear(x, weight, None, norm, residual), wanted) < BOUND
    many = random(5, 33, 128)
    for some in (many[:17], many):  # tiles of 16 tokens, and of 64
        assert relative(gpu.tiles(some, weight), reference.linear(some, weight)) < BOUND


@pytest.mark.parametrize(("compute", "bound"), HALVES)
@pytest.mark.parametrize("centred", [False, True])
def test_norms_of_an_odd_width(centred: bool, compute: torch.dtype, bound: float) -> None:
    x, norm = random(1, 4, 100) * 5 + 2, random_norm(2, 100, centred, centred)
    found = coarse_gpu(compute).normalise(x, norm)
    assert found.dtype == compute
    assert relative(found, norm(x)) < bound


def test_a_row_of_zeros_stays_finite() -> None:
    norm, weight = random_norm(1, 64), random_matrix(2, 5, 64)
    found = coarse_gpu().linear(torch.zeros(1, 64), weight, None, norm)
    assert torch.equal(found, torch.zeros(1, 5))


@pytest.mark.parametrize("shape", [(3, 64), (5, 448), (2, 3, 192)])
def test_unpacking_gives_each_weight(shape: tuple[int, ...]) -> None:
    """Of matrices and stacks that fill the last block of bytes and such that do not."""
    weight = random_matrix(6, *shape)
    assert isinstance(weight, NF4Matrix)
    wanted = dequantize(weight)
    assert torch.equal(coarse_gpu().unpack(weight), wanted)
    assert torch.equal(coarse_gpu(torch.float16).unpack(weight), wanted.half())
