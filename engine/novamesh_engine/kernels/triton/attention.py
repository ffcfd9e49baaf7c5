"""Attention of lone tokens over the paged cache, its positions split among programs.

One launch rotates the token's heads, writes its key and value, and attends; a second one merges the
parts where there are several (Flash-Decoding, Dao et al. 2023).
"""

from __future__ import annotations

import triton
import triton.language as tl

from novamesh_engine.kernels.triton.heads import rotated_halves, write_head

NEVER: tl.constexpr = tl.constexpr(float("-inf"))
LEAST: tl.constexpr = tl.constexpr(-3.0e38)  # below every score, and a number


@triton.jit
def attend_pages(
    query, query_too, top, total, left, right, start, stop, head, table,
    keys, values, key_scales, value_scales,
    KV_HEADS: tl.constexpr, D: tl.constexpr, HALF: tl.constexpr, INT8: tl.constexpr,
    PAGE: tl.constexpr, COMPUTE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Goes on with the positions [start, stop) that the cache holds, BLOCK at a time.

    query and query_too [GROUP, HALF] are scaled; top and total [GROUP], left and right
    [GROUP, HALF] are what was seen so far, as an online softmax keeps it.
    """
    lane = tl.arange(0, HALF)
    for at in range(start, stop, BLOCK):
        place = at + tl.arange(0, BLOCK)
        seen = place < stop
        page = tl.load(table + place // PAGE, mask=seen, other=0)
        slot_of = (page.to(tl.int64) * KV_HEADS + head) * PAGE + place % PAGE
        offset = slot_of[:, None] * D + lane[None, :]
        inside = seen[:, None] & (lane < D // 2)[None, :]
        half = tl.load(keys + offset, mask=inside, other=0.0).to(COMPUTE)
        half_too = tl.load(keys + offset + D // 2, mask=inside, other=0.0).to(COMPUTE)
        scores = tl.dot(query, tl.trans(half), input_precision="ieee")
        scores = tl.dot(query_too, tl.trans(half_too), scores, input_precision="ieee")
        if INT8:
            scores *= tl.load(key_scales + slot_of, mask=seen, other=0.0)[None, :]
        scores = tl.where(seen[None, :], scores, NEVER)
        higher = tl.maximum(top, tl.max(scores, 1))
        shrink = tl.exp(top - higher)
        chance = tl.exp(scores - higher[:, None])
        total = total * shrink + tl.sum(chance, 1)
        if INT8:
            chance *= tl.load(value_scales + slot_of, mask=seen, other=0.0)[None, :]
        chance = chance.to(COMPUTE)
        half = tl.load(values + offset, mask=inside, other=0.0).to(COMPUTE)
        half_too = tl.load(values + offset + D // 2, mask=inside, other=0.0).to(COMPUTE)
        left = tl.dot(chance, half, left * shrink[:, None], input_precision="ieee")
        right = tl.dot(chance, half_too, right * shrink[:, None], input_precision="ieee")
        top = higher
    return top, total, left, right


@triton.jit(
    do_not_specialize=["table_width", "window", "bound", "eps"],
    do_not_specialize_on_alignment=["slots", "tables", "lengths"],
)
def attend_kernel(
    qkv, query_norm, key_norm, eps, bound, cosines, sines, keys, values, key_scales, value_scales,
    slots, tables, table_width, lengths, scale, parts, weights, window,
    QKV: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr, GROUP: tl.constexpr,
    D: tl.constexpr, HALF: tl.constexpr, QUERY_WIDTH: tl.constexpr, KEY_WIDTH: tl.constexpr,
    NORM: tl.constexpr, CLIP: tl.constexpr, INT8: tl.constexpr, PAGE: tl.constexpr,
    COMPUTE: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """parts [T, HEADS, SPLITS, D] and weights [T, HEADS, SPLITS, 2] of each token of its own.

    The largest score and the sum of the weights of a part are its two weights; with one part the
    result is final. tables [T, table_width] names pages, lengths [T] counts the new token too, 0
    for a token that is not there; window is 0 for none. GROUP, a power of 2 from 16, holds the
    query heads of a key head. Grid (T, KV_HEADS, SPLITS). Reference: `attention`.
    """
    token = tl.program_id(0).to(tl.int64)
    head, split = tl.program_id(1), tl.program_id(2)
    row = qkv + token * QKV
    cosines += token * (D // 2)
    sines += token * (D // 2)
    length = tl.load(lengths + token)
    last = length - 1  # the new token's own position
    begin = tl.where(window > 0, tl.maximum(length - window, 0), 0)
    share = tl.cdiv(tl.cdiv(length - begin, SPLITS), BLOCK) * BLOCK
    start = begin + split * share
    stop = tl.minimum(start + share, last)
    owner = (start <= last) & (last < start + share)

    member = tl.arange(0, GROUP)
    heads = tl.where(member < HEADS // KV_HEADS, head * (HEADS // KV_HEADS) + member, HEADS)
    first, second = rotated_halves(
        row, heads, query_norm, eps, bound, cosines, sines,
        HEADS, D, HALF, QUERY_WIDTH, NORM, CLIP,
    )  # fmt: skip
    slot = tl.where(owner, tl.load(slots + token), -1)
    key, key_too, value, value_too = write_head(
        row, head, key_norm, eps, bound, cosines, sines, keys, values, key_scales, value_scales,
        slot, HEADS, KV_HEADS, D, HALF, KEY_WIDTH, NORM, CLIP, INT8, PAGE,
    )  # fmt: skip
    own = (tl.sum(first * key, 1) + tl.sum(second * key_too, 1)) * scale
    top = tl.where(owner, own, NEVER)
    total = tl.where(owner, 1.0, tl.zeros((GROUP,), tl.float32))
    left = tl.where(owner, value, 0.0) + tl.zeros((GROUP, HALF), tl.float32)
    right = tl.where(owner, value_too, 0.0) + tl.zeros((GROUP, HALF), tl.float32)

    query, query_too = (first * scale).to(COMPUTE), (second * scale).to(COMPUTE)
    top, total, left, right = attend_pages(
        query, query_too, top, total, left, right, start, stop, head, tables + token * table_width,
        keys, values, key_scales, value_scales, KV_HEADS, D, HALF, INT8, PAGE, COMPUTE, BLOCK,
    )  # fmt: skip
    lane = tl.arange(0, HALF)
    divisor = tl.where(total > 0, total, 1.0)[:, None]
    part = (token * HEADS + heads) * SPLITS + split
    wanted = (heads < HEADS)[:, None] & (lane < D // 2)[None, :]
    place = part[:, None] * D + lane[None, :]
    tl.store(parts + place, left / divisor, mask=wanted)
    tl.store(parts + place + D // 2, right / divisor, mask=wanted)
    if SPLITS > 1:
        tl.store(weights + 2 * part, top, mask=heads < HEADS)
        tl.store(weights + 2 * part + 1, total, mask=heads < HEADS)


@triton.jit
def merge_kernel(
    parts, weights, out, D: tl.constexpr, WIDTH: tl.constexpr, SPLITS: tl.constexpr
):  # fmt: skip
    """out [T * HEADS, D] of the parts [T * HEADS, SPLITS, D]. SPLITS is a power of 2.

    Grid (T * HEADS).
    """
    head = tl.program_id(0).to(tl.int64)
    split, lane = tl.arange(0, SPLITS), tl.arange(0, WIDTH)
    tops = tl.load(weights + 2 * (head * SPLITS + split))
    totals = tl.load(weights + 2 * (head * SPLITS + split) + 1)
    tops = tl.where(totals > 0, tops, LEAST)
    share = totals * tl.exp(tops - tl.max(tops, 0))
    whole = tl.sum(share, 0)
    share = share / tl.where(whole > 0, whole, 1.0)
    part = tl.load(
        parts + (head * SPLITS + split)[:, None] * D + lane[None, :],
        mask=(lane < D)[None, :], other=0.0,
    )  # fmt: skip
    tl.store(out + head * D + lane, tl.sum(part * share[:, None], 0), mask=lane < D)
