"""Which experts a token gets: scores, the choice of one slot, and pairs sorted by expert.

A slot whose id is -1 is empty: nothing is read for it, nothing is computed.
"""

from __future__ import annotations

import triton
import triton.language as tl

from novamesh_engine.kernels.triton.weights import normal, row_sums, statistics

NEVER: tl.constexpr = tl.constexpr(float("-inf"))


@triton.jit
def scores_kernel(
    x, norm, shift, eps, router, normed, scores,
    N: tl.constexpr, K: tl.constexpr, WIDTH: tl.constexpr, CENTRED: tl.constexpr,
    SHIFT: tl.constexpr, ROWS: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """scores [T, N] = router [N, K] · norm(x [T, K]), and the normed rows themselves [T, K].

    Grid (row blocks, T). The router is float32 whatever the rest is.
    """
    token = tl.program_id(1).to(tl.int64)
    x += token * K
    mean, scale = statistics(x, eps, K, WIDTH, CENTRED)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    total = row_sums(
        x, norm, shift, mean, scale, router, router, router, rows, rows < N,
        K, ROWS, GROUPS, False, True, SHIFT,
    )  # fmt: skip
    tl.store(scores + token * N + rows, total, mask=rows < N)
    if tl.program_id(0) == 0:
        k = tl.arange(0, WIDTH)
        value = normal(x, k, k < K, norm, shift, mean, scale, True, SHIFT)
        tl.store(normed + token * K + k, value, mask=k < K)


@triton.jit
def choose(
    scores, slot, effort, jitter,
    E: tl.constexpr, EXPERTS: tl.constexpr, SLOTS: tl.constexpr, ROUTER: tl.constexpr,
    RENORMALISE: tl.constexpr,
):  # fmt: skip
    """The expert of one slot and its weight, from a token's scores [E]; id -1 past `effort`.

    ROUTER "softmax" is `reference.route`, "sparsemixer" is `reference.sparsemixer`; equal scores go
    to the lower id. EXPERTS is E's power of 2.
    """
    lane = tl.arange(0, EXPERTS)
    given = tl.load(scores + lane, mask=lane < E, other=NEVER)
    left, top = given, tl.max(given, 0)
    real = tl.where(lane < E, given, top)  # whose distance from the best is a number
    sum_all = tl.sum(tl.exp(given - top), 0)
    chosen, weight, total = -1, 0.0, 0.0
    for at in tl.static_range(SLOTS):
        best, expert = tl.max(left, return_indices=True, axis=0)
        expert = tl.minimum(expert, E - 1)  # scores that are no numbers lead nowhere else
        if ROUTER == "sparsemixer":
            far = best - real > 2 * jitter * tl.maximum(tl.abs(real), best)
            one = 1.0 / tl.sum(tl.where(far, 0.0, tl.exp(left - best)), 0)
        else:
            one = tl.exp(best - top) / sum_all
            total += one
        left = tl.where(lane == expert, NEVER, left)
        chosen, weight = tl.where(at == slot, expert, chosen), tl.where(at == slot, one, weight)
    if RENORMALISE:
        weight /= total
    return tl.where(slot < effort, chosen, -1), tl.where(slot < effort, weight, 0.0)


@triton.jit(do_not_specialize=["jitter"], do_not_specialize_on_alignment=["efforts"])
def route_kernel(
    scores, efforts, jitter, ids, factors, N,
    E: tl.constexpr, EXPERTS: tl.constexpr, SLOTS: tl.constexpr, ROUTER: tl.constexpr,
    RENORMALISE: tl.constexpr,
):  # fmt: skip
    """ids and factors [T, SLOTS] from scores [T, N], whose first E are the experts'. Grid (T)."""
    token = tl.program_id(0)
    effort = tl.load(efforts + token)
    for slot in tl.static_range(SLOTS):
        expert, factor = choose(
            scores + token * N, slot, effort, jitter, E, EXPERTS, SLOTS, ROUTER, RENORMALISE
        )
        tl.store(ids + token * SLOTS + slot, expert)
        tl.store(factors + token * SLOTS + slot, factor)


@triton.jit(do_not_specialize=["P"])
def count_kernel(
    ids, counts, P, E: tl.constexpr, EXPERTS: tl.constexpr, PAIRS: tl.constexpr
):  # fmt: skip
    """counts [blocks, E]: how many of each block of PAIRS pairs an expert gets. Grid (blocks)."""
    pair = tl.program_id(0) * PAIRS + tl.arange(0, PAIRS)
    lane = tl.arange(0, EXPERTS)
    expert = tl.load(ids + pair, mask=pair < P, other=-1)
    found = tl.sum((expert[:, None] == lane[None, :]).to(tl.int32), 0)
    tl.store(counts + tl.program_id(0) * E + lane, found, mask=lane < E)


@triton.jit(do_not_specialize=["P", "blocks", "tiles"])
def order_kernel(
    ids, counts, order, experts, P, blocks, tiles,
    E: tl.constexpr, EXPERTS: tl.constexpr, PAIRS: tl.constexpr, BLOCKS: tl.constexpr,
    TOKENS: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """Pairs sorted by expert, each expert's on tiles of TOKENS of their own.

    order [tiles * TOKENS] must come filled with -1 and gets pair numbers; experts [tiles] gets the
    expert of each tile, -1 for one that is not used. BLOCKS and TILES are powers of 2 that hold
    blocks and tiles. Grid (blocks). Reference: `dispatch`.
    """
    block = tl.program_id(0)
    lane = tl.arange(0, EXPERTS)
    row = tl.arange(0, BLOCKS)
    table = tl.load(
        counts + row[:, None] * E + lane[None, :],
        mask=(row < blocks)[:, None] & (lane < E)[None, :], other=0,
    )  # fmt: skip
    used = (tl.sum(table, 0) + TOKENS - 1) // TOKENS
    end = tl.cumsum(used, 0)
    earlier = tl.sum(tl.where((row < block)[:, None], table, 0), 0)
    begin = (end - used) * TOKENS + earlier
    pair = block * PAIRS + tl.arange(0, PAIRS)
    expert = tl.load(ids + pair, mask=pair < P, other=-1)
    mine = (expert[:, None] == lane[None, :]).to(tl.int32)
    place = tl.sum(mine * (begin[None, :] + tl.cumsum(mine, 0) - 1), 1)
    tl.store(order + place, pair, mask=(pair < P) & (expert >= 0))
    if block == 0:
        tile = tl.arange(0, TILES)
        owner = tl.sum((end[None, :] <= tile[:, None]).to(tl.int32), 1)
        tl.store(experts + tile, tl.where(owner < EXPERTS, owner, -1), mask=tile < tiles)
