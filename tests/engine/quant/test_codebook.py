"""NF4 by hand: nibble order, scales, stacks and tiles."""

from __future__ import annotations

import bitsandbytes.functional as bnb
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from novamesh_engine.quant.codebook import BLOCK, NF4_VALUES, NF4Matrix, dequantize


def make(rows: int, blocks: int, seed: int = 0) -> NF4Matrix:
    rng = torch.Generator().manual_seed(seed)
    packed = torch.randint(0, 256, (rows, blocks * 32), generator=rng, dtype=torch.uint8)
    return NF4Matrix(packed, torch.rand((rows, blocks), generator=rng).half())


def test_the_values_are_those_of_bitsandbytes() -> None:
    assert torch.equal(bnb.get_4bit_type("nf4", device="cpu"), torch.tensor(NF4_VALUES))


@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 2**31))
@settings(deadline=None)
def test_even_elements_are_high_nibbles(rows: int, blocks: int, seed: int) -> None:
    matrix = make(rows, blocks, seed)
    found = dequantize(matrix)
    assert found.shape == matrix.shape == (rows, blocks * BLOCK)
    for row in range(rows):
        for at in range(blocks * BLOCK):
            byte = int(matrix.packed[row, at // 2])
            code = byte & 15 if at % 2 else byte >> 4
            wanted = torch.tensor(NF4_VALUES[code]) * matrix.absmax[row, at // BLOCK].float()
            assert found[row, at] == wanted


def test_tiles_and_stacks_are_views() -> None:
    matrix = make(8, 2)
    assert torch.equal(dequantize(matrix.rows(3, 5)), dequantize(matrix)[3:5])
    stack = NF4Matrix(matrix.packed.view(2, 4, 64), matrix.absmax.view(2, 4, 2))
    assert stack.shape == (2, 4, 128)
    assert torch.equal(dequantize(stack[1]), dequantize(matrix)[4:])
    assert stack[1].packed.data_ptr() == matrix.packed[4:].data_ptr()


def test_moving_keeps_the_bytes() -> None:
    moved = make(2, 1).to("cpu")
    assert torch.equal(moved.packed, make(2, 1).packed)
    assert torch.equal(moved.absmax, make(2, 1).absmax)
