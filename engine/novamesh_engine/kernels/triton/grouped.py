"""SwiGLU experts of many tokens: pairs sorted by expert, tiles of one expert on tensor cores."""

from __future__ import annotations

import triton
import triton.language as tl

from novamesh_engine.kernels.triton.weights import tile_products


@triton.jit
def grouped_gate_up_kernel(
    x, order, experts, weight, absmax, codes, active,
    F: tl.constexpr, K: tl.constexpr, SLOTS: tl.constexpr, PACKED: tl.constexpr,
    COMPUTE: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """active [P, F] = silu(gate · x) * (up · x) of each pair, of active's type.

    order and experts are those of `order_kernel`; x [T, K] is of type COMPUTE, weight [E, 2 F, K].
    Grid (tiles, row blocks of F).
    """
    tile = tl.program_id(0)
    expert = tl.load(experts + tile)
    if expert >= 0:
        pairs = tl.load(order + tile * TOKENS + tl.arange(0, TOKENS))
        given = pairs >= 0
        rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
        present = rows < F
        first = expert.to(tl.int64) * (2 * F)
        gate = tile_products(
            x, pairs // SLOTS, given, weight, absmax, codes, first + rows, present,
            K, TOKENS, ROWS, GROUPS, PACKED, COMPUTE,
        )  # fmt: skip
        up = tile_products(
            x, pairs // SLOTS, given, weight, absmax, codes, first + F + rows, present,
            K, TOKENS, ROWS, GROUPS, PACKED, COMPUTE,
        )  # fmt: skip
        place = pairs.to(tl.int64)[:, None] * F + rows[None, :]
        inside = given[:, None] & present[None, :]
        value = gate * tl.sigmoid(gate) * up
        if tl.float16 == COMPUTE:  # has no room for what a few activations of a model grow to
            value = tl.minimum(tl.maximum(value, -65504.0), 65504.0)
        tl.store(active + place, value, mask=inside)


@triton.jit
def grouped_down_kernel(
    active, order, experts, factors, weight, absmax, codes, products,
    H: tl.constexpr, K: tl.constexpr, PACKED: tl.constexpr, COMPUTE: tl.constexpr,
    TOKENS: tl.constexpr, ROWS: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """products [P, H] = each pair's factor times its down product; weight is [E, H, K].

    Grid (tiles, row blocks of H). Pairs of empty slots are not written.
    """
    tile = tl.program_id(0)
    expert = tl.load(experts + tile)
    if expert >= 0:
        pairs = tl.load(order + tile * TOKENS + tl.arange(0, TOKENS))
        given = pairs >= 0
        rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
        present = rows < H
        total = tile_products(
            active, pairs, given, weight, absmax, codes, expert.to(tl.int64) * H + rows, present,
            K, TOKENS, ROWS, GROUPS, PACKED, COMPUTE,
        )  # fmt: skip
        total *= tl.load(factors + pairs, mask=given, other=0.0)[:, None]
        place = pairs.to(tl.int64)[:, None] * H + rows[None, :]
        tl.store(products + place, total, mask=given[:, None] & present[None, :])


@triton.jit
def combine_kernel(
    products, ids, residual, out, H, SLOTS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """out [T, H] = residual + the slots' products [T, SLOTS, H]. Grid (T, blocks of H)."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < H
    total = tl.zeros((BLOCK,), tl.float32)
    for slot in range(SLOTS):
        pair = token * SLOTS + slot
        if tl.load(ids + pair) >= 0:
            total += tl.load(products + pair * H + column, mask=inside, other=0.0)
    place = token * H + column
    tl.store(out + place, total + tl.load(residual + place, mask=inside), mask=inside)
