"""What a kernel reads of a matrix, packed or plain, is what the reference multiplies with."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from novamesh_engine.kernels import reference
from novamesh_engine.kernels.triton.weights import row_sums, statistics, tile_products
from novamesh_engine.quant.codebook import NF4_VALUES, NF4Matrix
from support.random_layers import random, random_matrix
from support.tiny_moe import relative

BOUND = 1e-6
CODES = torch.tensor(NF4_VALUES)


@triton.jit
def statistics_of(x, out, eps, width: tl.constexpr, power: tl.constexpr, centred: tl.constexpr):
    mean, scale = statistics(x, eps, width, power, centred)
    tl.store(out, mean)
    tl.store(out + 1, scale)


@triton.jit
def sums_of(
    x, weight, absmax, codes, out, count, width: tl.constexpr, rows: tl.constexpr,
    groups: tl.constexpr, packed: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * rows + tl.arange(0, rows)
    total = row_sums(
        x, x, x, 0.0, 1.0, weight, absmax, codes, row, row < count,
        width, rows, groups, packed, False, False,
    )  # fmt: skip
    tl.store(out + row, total, mask=row < count)


@triton.jit
def tile_of(
    x, chosen, weight, absmax, codes, out, count, width: tl.constexpr, rows: tl.constexpr,
    groups: tl.constexpr, packed: tl.constexpr, compute: tl.constexpr,
):  # fmt: skip
    lane, row = tl.arange(0, 16), tl.arange(0, rows)
    token = tl.load(chosen + lane)
    total = tile_products(
        x, token, token >= 0, weight, absmax, codes, row, row < count,
        width, 16, rows, groups, packed, compute,
    )  # fmt: skip
    tl.store(out + lane[:, None] * rows + row[None, :], total)


def parts(weight: Tensor | NF4Matrix) -> tuple[Tensor, Tensor, bool]:
    if isinstance(weight, NF4Matrix):
        return weight.packed, weight.absmax, True
    return weight, CODES, False


@pytest.mark.parametrize("centred", [False, True])
def test_statistics_leave_out_what_pads_a_row(centred: bool) -> None:
    x, found = random(1, 40) + 3, torch.empty(2)
    statistics_of[(1,)](x, found, 1e-5, 40, 64, centred)
    mean = x.mean() if centred else torch.tensor(0.0)
    wanted = torch.stack((mean, 1 / ((x - mean).square().mean() + 1e-5).sqrt()))
    assert relative(found, wanted) < BOUND


@given(st.integers(1, 40), st.integers(1, 3), st.sampled_from([1, 2, 4]), st.integers(0, 99))
@settings(max_examples=6)
@pytest.mark.parametrize("form", ["nf4", "float32", "float16"])
def test_rows_times_a_vector(form: str, rows: int, blocks: int, groups: int, seed: int) -> None:
    """The last block of rows and the last step along K are partial ones as often as not."""
    width = blocks * 64 - (0 if form == "nf4" else seed % 64)
    weight, x = random_matrix(seed, rows, width, form=form), random(seed + 1, width)
    found = torch.full((rows + 1,), 7.0)
    sums_of[(triton.cdiv(rows, 16),)](
        x, *parts(weight)[:2], CODES, found, rows, width, 16, groups, form == "nf4"
    )
    wanted = reference.linear(x[None], weight)[0]
    assert float((found[:rows] - wanted).abs().max()) < 1e-5
    assert found[rows] == 7  # nothing behind the last row is written


@pytest.mark.parametrize("form", ["nf4", "float32", "float16"])
@pytest.mark.parametrize(("compute", "bound"), [(torch.float32, BOUND), (torch.float16, 1e-3)])
def test_a_tile_takes_the_tokens_that_it_is_given(
    compute: torch.dtype, bound: float, form: str
) -> None:
    """In any order; those that are not there are not read and count as zeros."""
    width = 192 if form == "nf4" else 168
    weight, x = random_matrix(3, 20, width, form=form), random(4, 9, width).to(compute)
    chosen = torch.tensor([5, 0, 8, 8, -1, 3, 7, -1, 1, 2, 4, 6, -1, -1, -1, -1], dtype=torch.int32)
    found = torch.empty(16, 32)
    kind = tl.float16 if compute == torch.float16 else tl.float32
    tile_of[(1,)](
        x, chosen, *parts(weight)[:2], CODES, found, 20, width, 32, 2, form == "nf4", kind
    )
    wanted = reference.linear(x[chosen.clamp(min=0).long()], weight)
    wanted[chosen < 0] = 0
    assert relative(found[:, :20], wanted) < bound
    assert not found[:, 20:].any()


def test_the_even_weight_is_in_the_high_half_of_a_byte() -> None:
    packed = torch.zeros((1, 32), dtype=torch.uint8)
    packed[0, 3] = 0xF0  # weight 6 is the largest value, 7 the smallest
    weight = NF4Matrix(packed, torch.full((1, 1), 2.0).half())
    for at, value in ((6, NF4_VALUES[15]), (7, NF4_VALUES[0])):
        found, x = torch.empty(1), torch.zeros(64)
        x[at] = 1
        sums_of[(1,)](x, *parts(weight)[:2], CODES, found, 1, 64, 16, 1, True)
        assert float(found) == pytest.approx(2 * value)
