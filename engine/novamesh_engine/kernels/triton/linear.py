"""Linear layers: a few tokens row by row with their norm in front, or tiles of many tokens."""

from __future__ import annotations

import triton
import triton.language as tl

from novamesh_engine.kernels.triton.weights import normal, row_sums, statistics, tile_products


@triton.jit(do_not_specialize=["eps"])
def rows_kernel(
    x, norm, shift, eps, weight, absmax, codes, bias, residual, out, N,
    K: tl.constexpr, WIDTH: tl.constexpr, NORM: tl.constexpr, CENTRED: tl.constexpr,
    SHIFT: tl.constexpr, PACKED: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
    ROWS: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """out [T, N] = norm(x [T, K]) times weight [N, K], plus bias [N], plus residual [T, N].

    Grid (row blocks, T). Reference: `linear` after `rms_norm` or `layer_norm`.
    """
    token = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    present = rows < N
    x += token * K
    mean, scale = 0.0, 1.0
    if NORM:
        mean, scale = statistics(x, eps, K, WIDTH, CENTRED)
    total = row_sums(
        x, norm, shift, mean, scale, weight, absmax, codes, rows, present,
        K, ROWS, GROUPS, PACKED, NORM, SHIFT,
    )  # fmt: skip
    if BIAS:
        total += tl.load(bias + rows, mask=present, other=0.0)
    if RESIDUAL:
        total += tl.load(residual + token * N + rows, mask=present, other=0.0)
    tl.store(out + token * N + rows, total, mask=present)


@triton.jit(do_not_specialize=["T"])
def tile_kernel(
    x, weight, absmax, codes, bias, residual, out, T, N,
    K: tl.constexpr, PACKED: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
    COMPUTE: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """The same for tiles of TOKENS tokens; x [T, K] is of type COMPUTE and has its norm behind it.

    Grid (token blocks, row blocks), so that neighbours share their weights in the L2 cache.
    """
    tokens = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    given, present = tokens < T, rows < N
    total = tile_products(
        x, tokens, given, weight, absmax, codes, rows, present,
        K, TOKENS, ROWS, GROUPS, PACKED, COMPUTE,
    )  # fmt: skip
    if BIAS:
        total += tl.load(bias + rows, mask=present, other=0.0)[None, :]
    place = tokens.to(tl.int64)[:, None] * N + rows[None, :]
    inside = given[:, None] & present[None, :]
    if RESIDUAL:
        total += tl.load(residual + place, mask=inside, other=0.0)
    tl.store(out + place, total, mask=inside)


@triton.jit
def norm_kernel(
    x, norm, shift, eps, out,
    K: tl.constexpr, WIDTH: tl.constexpr, CENTRED: tl.constexpr, SHIFT: tl.constexpr,
):  # fmt: skip
    """out [T, K] = norm(x [T, K]), of out's type. Grid (T). Reference: `rms_norm`, `layer_norm`."""
    token = tl.program_id(0).to(tl.int64)
    mean, scale = statistics(x + token * K, eps, K, WIDTH, CENTRED)
    k = tl.arange(0, WIDTH)
    value = normal(x + token * K, k, k < K, norm, shift, mean, scale, True, SHIFT)
    tl.store(out + token * K + k, value, mask=k < K)


@triton.jit
def unpack_kernel(
    packed, absmax, codes, out, COUNT, BYTES: tl.constexpr
):  # fmt: skip
    """out [COUNT * 2] = the weights of packed [COUNT], of out's type. Reference: `dequantize`.

    Grid (blocks of BYTES bytes, a multiple of 32).
    """
    lane = tl.arange(0, 32)
    group = tl.program_id(0).to(tl.int64) * (BYTES // 32) + tl.arange(0, BYTES // 32)
    place = group[:, None] * 32 + lane[None, :]
    byte = tl.load(packed + place, mask=place < COUNT, other=0)
    step = tl.load(absmax + group, mask=group * 32 < COUNT, other=0.0).to(tl.float32)[:, None]
    high = tl.load(codes + (byte >> 4).to(tl.int32)) * step
    low = tl.load(codes + (byte & 15).to(tl.int32)) * step
    tl.store(out + 2 * place, high, mask=place < COUNT)
    tl.store(out + 2 * place + 1, low, mask=place < COUNT)
