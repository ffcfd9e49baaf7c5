"""A head of one token, from the row that the projection left: normed, clipped, rotated, cached.

Element i of a head is rotated with element i + D / 2, so that a head is held as two halves.
"""

from __future__ import annotations

import triton
import triton.language as tl

from novamesh_engine.kernels.triton.weights import statistics


@triton.jit
def clip(value, bound, CLIP: tl.constexpr):
    """Within +-bound, if there is one."""
    return tl.minimum(tl.maximum(value, -bound), bound) if CLIP else value


@triton.jit
def rotated_halves(
    row, heads, norm, eps, bound, cosines, sines,
    COUNT: tl.constexpr, D: tl.constexpr, HALF: tl.constexpr, WIDTH: tl.constexpr,
    NORM: tl.constexpr, CLIP: tl.constexpr,
):  # fmt: skip
    """Heads [N] of a row [COUNT * D] of queries or keys: two float32 [N, HALF], zeros past D / 2.

    NORM is "", "head" (weight [D]) or "full" (weight [COUNT * D]); WIDTH is COUNT * D's power of 2,
    HALF that of D / 2. Heads past COUNT are zeros. Reference: `Attention._heads`, `rotate`.
    """
    lane = tl.arange(0, HALF)
    inside = (heads < COUNT)[:, None] & (lane < D // 2)[None, :]
    place = heads[:, None] * D + lane[None, :]
    first = tl.load(row + place, mask=inside, other=0.0)
    second = tl.load(row + place + D // 2, mask=inside, other=0.0)
    if NORM == "head":
        scale = 1.0 / tl.sqrt((tl.sum(first * first, 1) + tl.sum(second * second, 1)) / D + eps)
        first *= scale[:, None] * tl.load(norm + lane, mask=lane < D // 2, other=0.0)[None, :]
        second *= (
            scale[:, None] * tl.load(norm + D // 2 + lane, mask=lane < D // 2, other=0.0)[None, :]
        )
    if NORM == "full":
        _, scale = statistics(row, eps, COUNT * D, WIDTH, False)
        first *= scale * tl.load(norm + place, mask=inside, other=0.0)
        second *= scale * tl.load(norm + place + D // 2, mask=inside, other=0.0)
    first, second = clip(first, bound, CLIP), clip(second, bound, CLIP)
    cosine = tl.load(cosines + lane, mask=lane < D // 2, other=0.0)[None, :]
    sine = tl.load(sines + lane, mask=lane < D // 2, other=0.0)[None, :]
    return first * cosine - second * sine, second * cosine + first * sine


@triton.jit
def cached(value, scale, INT8: tl.constexpr, DTYPE: tl.constexpr):
    """What a cache of type DTYPE gives back for float32 values: steps and what they stand for.

    Adding and taking away 1.5 * 2**23 rounds to the nearest, ties to even, as `write_kv` does.
    """
    if INT8:
        step = tl.where(scale > 0, scale, 1.0)
        rounded = (value / step + 12582912.0) - 12582912.0
        steps = tl.minimum(tl.maximum(rounded, -127.0), 127.0).to(DTYPE)
        return steps, steps.to(tl.float32) * scale
    steps = value.to(DTYPE)
    return steps, steps.to(tl.float32)


@triton.jit
def place_kernel(
    qkv, query_norm, key_norm, eps, bound, cosines, sines, keys, values, key_scales, value_scales,
    slots, QKV: tl.constexpr,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr, HALF: tl.constexpr,
    QUERY_WIDTH: tl.constexpr, KEY_WIDTH: tl.constexpr, NORM: tl.constexpr, CLIP: tl.constexpr,
    INT8: tl.constexpr, PAGE: tl.constexpr,
    query,
):  # fmt: skip
    """query [T, HEADS, D] = the rotated queries of qkv [T, QKV]; keys and values to the cache.

    Grid (T, HEADS + KV_HEADS): a program has one head. Reference: `rotate`, `write_kv`.
    """
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    row = qkv + token * QKV
    one = tl.zeros((1,), tl.int32)
    lane = tl.arange(0, HALF)
    inside = (lane < D // 2)[None, :]
    cosines += token * (D // 2)
    sines += token * (D // 2)
    if head < HEADS:
        first, second = rotated_halves(
            row, one + head, query_norm, eps, bound, cosines, sines,
            HEADS, D, HALF, QUERY_WIDTH, NORM, CLIP,
        )  # fmt: skip
        place = (token * HEADS + head) * D + lane[None, :]
        tl.store(query + place, first, mask=inside)
        tl.store(query + place + D // 2, second, mask=inside)
    else:
        write_head(
            row, head - HEADS, key_norm, eps, bound, cosines, sines, keys, values, key_scales,
            value_scales, tl.load(slots + token),
            HEADS, KV_HEADS, D, HALF, KEY_WIDTH, NORM, CLIP, INT8, PAGE,
        )  # fmt: skip


@triton.jit
def write_head(
    row, head, key_norm, eps, bound, cosines, sines, keys, values, key_scales, value_scales, slot,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr, HALF: tl.constexpr,
    KEY_WIDTH: tl.constexpr, NORM: tl.constexpr, CLIP: tl.constexpr, INT8: tl.constexpr,
    PAGE: tl.constexpr,
):  # fmt: skip
    """Write one head's key and value to its slot, and return both as the cache gives them back.

    Keys as two halves, values as two halves, each float32 [1, HALF]; a slot below 0 is not written.
    """
    one = tl.zeros((1,), tl.int32)
    lane = tl.arange(0, HALF)
    half = (lane < D // 2)[None, :]
    first, second = rotated_halves(
        row + HEADS * D, one + head, key_norm, eps, bound, cosines, sines,
        KV_HEADS, D, HALF, KEY_WIDTH, NORM, CLIP,
    )  # fmt: skip
    offset = (HEADS + KV_HEADS + head) * D + lane[None, :]
    third = clip(tl.load(row + offset, mask=half, other=0.0), bound, CLIP)
    fourth = clip(tl.load(row + offset + D // 2, mask=half, other=0.0), bound, CLIP)
    key_scale = tl.maximum(tl.max(tl.abs(first)), tl.max(tl.abs(second))) / 127
    value_scale = tl.maximum(tl.max(tl.abs(third)), tl.max(tl.abs(fourth))) / 127
    slot = slot.to(tl.int64)
    page = (slot // PAGE) * KV_HEADS + head
    if INT8:
        tl.store(key_scales + page * PAGE + slot % PAGE, key_scale, mask=slot >= 0)
        tl.store(value_scales + page * PAGE + slot % PAGE, value_scale, mask=slot >= 0)
    written = half & (lane + slot >= lane)[None, :]
    place = (page * PAGE + slot % PAGE) * D + lane[None, :]
    kind = keys.dtype.element_ty
    steps, first = cached(first, key_scale, INT8, kind)
    tl.store(keys + place, steps, mask=written)
    steps, second = cached(second, key_scale, INT8, kind)
    tl.store(keys + place + D // 2, steps, mask=written)
    steps, third = cached(third, value_scale, INT8, kind)
    tl.store(values + place, steps, mask=written)
    steps, fourth = cached(fourth, value_scale, INT8, kind)
    tl.store(values + place + D // 2, steps, mask=written)
    return first, second, third, fourth
