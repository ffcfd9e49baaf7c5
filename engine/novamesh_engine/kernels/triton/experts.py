"""SwiGLU experts of a few tokens: every (token, slot) pair and block of rows is a program.

Nothing is sorted or copied together: a program reads its expert's id and goes to its weights.
"""

from __future__ import annotations

import triton
import triton.language as tl

from novamesh_engine.kernels.triton.routing import choose
from novamesh_engine.kernels.triton.weights import row_sums


@triton.jit(do_not_specialize=["jitter"], do_not_specialize_on_alignment=["efforts"])
def gate_up_kernel(
    x, scores, efforts, jitter, ids, factors, weight, absmax, codes, active, N,
    F: tl.constexpr, K: tl.constexpr, E: tl.constexpr, EXPERTS: tl.constexpr,
    SLOTS: tl.constexpr, ROUTER: tl.constexpr, RENORMALISE: tl.constexpr, PACKED: tl.constexpr,
    ROWS: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """active [T, SLOTS, F] = silu(gate · x) * (up · x) of each slot's expert, x [T, K] normed.

    Routes first, from scores [T, N], and leaves ids and factors [T, SLOTS] for the others; with
    ROUTER "given" it reads the ids instead. weight is [E, 2 F, K], the gate's rows first.
    Grid (row blocks of F, T * SLOTS). Reference: `route` or `sparsemixer`, and half of `expert`.
    """
    pair = tl.program_id(1)
    token, slot = pair // SLOTS, pair % SLOTS
    if ROUTER == "given":
        expert = tl.load(ids + pair).to(tl.int32)
    else:
        expert, factor = choose(
            scores + token * N, slot, tl.load(efforts + token), jitter,
            E, EXPERTS, SLOTS, ROUTER, RENORMALISE,
        )  # fmt: skip
        if tl.program_id(0) == 0:
            tl.store(ids + pair, expert)
            tl.store(factors + pair, factor)
    if expert >= 0:
        rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        present = rows < F
        first = expert.to(tl.int64) * (2 * F)
        x += token.to(tl.int64) * K
        gate = row_sums(
            x, x, x, 0.0, 1.0, weight, absmax, codes, first + rows, present,
            K, ROWS, GROUPS, PACKED, False, False,
        )  # fmt: skip
        up = row_sums(
            x, x, x, 0.0, 1.0, weight, absmax, codes, first + F + rows, present,
            K, ROWS, GROUPS, PACKED, False, False,
        )  # fmt: skip
        tl.store(active + pair.to(tl.int64) * F + rows, gate * tl.sigmoid(gate) * up, mask=present)


@triton.jit
def down_kernel(
    active, ids, factors, weight, absmax, codes, residual, out, H,
    K: tl.constexpr, SLOTS: tl.constexpr, PACKED: tl.constexpr, ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
):  # fmt: skip
    """out [T, H] = residual + the slots' factors times their down products, slot after slot.

    active is [T, SLOTS, K], weight [E, H, K]. Grid (row blocks of H, T). Reference: `combine`.
    """
    token = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    present = rows < H
    total = tl.zeros((ROWS,), tl.float32)
    for slot in range(SLOTS):
        pair = token * SLOTS + slot
        expert = tl.load(ids + pair).to(tl.int32)
        if expert >= 0:
            x = active + pair * K
            total += tl.load(factors + pair) * row_sums(
                x, x, x, 0.0, 1.0, weight, absmax, codes, expert.to(tl.int64) * H + rows, present,
                K, ROWS, GROUPS, PACKED, False, False,
            )  # fmt: skip
    place = token * H + rows
    tl.store(out + place, total + tl.load(residual + place, mask=present), mask=present)
