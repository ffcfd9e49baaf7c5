"""Products with rows of a weight matrix, packed NF4 or plain, as every kernel here needs them.

A packed byte holds two neighbours along K, the even one in its high nibble; a scale is for 64
weights, which is 32 bytes (`quant.codebook`). Rules: the packed form is unpacked in registers only.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def statistics(x, eps, K: tl.constexpr, WIDTH: tl.constexpr, CENTRED: tl.constexpr):
    """Mean (0 unless centred) and reciprocal deviation of a row x [K]; WIDTH is K's power of 2."""
    k = tl.arange(0, WIDTH)
    row = tl.load(x + k, mask=k < K, other=0.0).to(tl.float32)
    mean = 0.0
    if CENTRED:
        mean = tl.sum(row, 0) / K
        row = tl.where(k < K, row - mean, 0.0)
    return mean, 1.0 / tl.sqrt(tl.sum(row * row, 0) / K + eps)


@triton.jit
def normal(
    x, k, inside, norm, shift, mean, scale, NORM: tl.constexpr, SHIFT: tl.constexpr
):  # fmt: skip
    """Elements k of x in float32, normalised if NORM is set (by weight `norm` and bias `shift`)."""
    value = tl.load(x + k, mask=inside, other=0.0).to(tl.float32)
    if NORM:
        value = (value - mean) * scale * tl.load(norm + k, mask=inside, other=0.0)
        if SHIFT:
            value += tl.load(shift + k, mask=inside, other=0.0)
    return value


@triton.jit
def row_sums(
    x, norm, shift, mean, scale,
    weight, absmax, codes, rows, present,
    K: tl.constexpr, ROWS: tl.constexpr, GROUPS: tl.constexpr, PACKED: tl.constexpr,
    NORM: tl.constexpr, SHIFT: tl.constexpr,
):  # fmt: skip
    """Rows [ROWS] of weight [N, K] times one vector x [K], on CUDA cores: float32 [ROWS].

    GROUPS blocks of 64 weights are taken at a time; rows that are not `present` are not read.
    """
    lane = tl.arange(0, 32)
    first = rows.to(tl.int64)
    total = tl.zeros((ROWS, GROUPS, 32), tl.float32)
    for start in range(0, (K + 63) // 64, GROUPS):
        group = start + tl.arange(0, GROUPS)
        if PACKED:
            pair = group[:, None] * 32 + lane[None, :]
            inside = pair < K // 2
            even = normal(x, 2 * pair, inside, norm, shift, mean, scale, NORM, SHIFT)
            odd = normal(x, 2 * pair + 1, inside, norm, shift, mean, scale, NORM, SHIFT)
            wanted = present[:, None] & (group < K // 64)[None, :]
            byte = tl.load(
                weight + (first * (K // 2))[:, None, None] + pair[None, :, :],
                mask=present[:, None, None] & inside[None, :, :], other=0,
            )  # fmt: skip
            step = tl.load(
                absmax + (first * (K // 64))[:, None] + group[None, :], mask=wanted, other=0.0
            ).to(tl.float32)
            high = tl.load(codes + (byte >> 4).to(tl.int32))
            low = tl.load(codes + (byte & 15).to(tl.int32))
            total += (high * even[None, :, :] + low * odd[None, :, :]) * step[:, :, None]
        else:
            for half in tl.static_range(2):
                k = group[:, None] * 64 + half * 32 + lane[None, :]
                inside = k < K
                value = normal(x, k, inside, norm, shift, mean, scale, NORM, SHIFT)
                plain = tl.load(
                    weight + (first * K)[:, None, None] + k[None, :, :],
                    mask=present[:, None, None] & inside[None, :, :], other=0.0,
                )  # fmt: skip
                total += plain.to(tl.float32) * value[None, :, :]
    return tl.sum(tl.sum(total, 2), 1)


@triton.jit
def tile_products(
    x, tokens, given, weight, absmax, codes, rows, present,
    K: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr, GROUPS: tl.constexpr,
    PACKED: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Rows `tokens` [TOKENS] of x [T, K] times rows [ROWS] of weight: float32 [TOKENS, ROWS].

    On tensor cores; x is of type COMPUTE. Tokens that are not `given` and rows that are not
    `present` are not read and count as zeros.
    """
    total = tl.zeros((TOKENS, ROWS), tl.float32)
    first, place = rows.to(tl.int64), tokens.to(tl.int64) * K
    for start in range(0, (K + 63) // 64, GROUPS):
        if PACKED:
            group = start + tl.arange(0, GROUPS)
            lane = tl.arange(0, 32)
            byte = tl.load(
                weight + (first * (K // 2))[:, None, None]
                + (group[:, None] * 32 + lane[None, :])[None, :, :],
                mask=present[:, None, None] & (group < K // 64)[None, :, None], other=0,
            )  # fmt: skip
            step = tl.load(
                absmax + (first * (K // 64))[:, None] + group[None, :],
                mask=present[:, None] & (group < K // 64)[None, :], other=0.0,
            ).to(tl.float32)  # fmt: skip
            k = start * 64 + 2 * tl.arange(0, GROUPS * 32)
            for half in tl.static_range(2):
                nibble = (byte >> 4) if half == 0 else (byte & 15)
                part = tl.load(codes + nibble.to(tl.int32)) * step[:, :, None]
                part = tl.reshape(part.to(COMPUTE), (ROWS, GROUPS * 32))
                value = tl.load(
                    x + place[:, None] + (k + half)[None, :],
                    mask=given[:, None] & (k < K)[None, :], other=0.0,
                )  # fmt: skip
                total = tl.dot(value, tl.trans(part), total, input_precision="ieee")
        else:
            k = start * 64 + tl.arange(0, GROUPS * 64)
            part = tl.load(
                weight + (first * K)[:, None] + k[None, :],
                mask=present[:, None] & (k < K)[None, :], other=0.0,
            ).to(COMPUTE)  # fmt: skip
            value = tl.load(
                x + place[:, None] + k[None, :],
                mask=given[:, None] & (k < K)[None, :], other=0.0,
            )  # fmt: skip
            total = tl.dot(value, tl.trans(part), total, input_precision="ieee")
    return total
