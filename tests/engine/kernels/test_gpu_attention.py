"""Attention of a step: lone tokens and chunks side by side are what the definition gives."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from novamesh_engine.kernels.device_step import pack
from novamesh_engine.kernels.gpu_attention import (
    PART_MIN,
    SPLITS_MAX,
    GpuAttention,
    Span,
    choose_splits,
)
from novamesh_engine.models.attention import Attention
from support.coarse_cuts import coarse_gpu
from support.random_layers import HIDDEN, RandomKV, random, random_attention
from support.tiny_moe import Part, make_batch, relative

BOUND, HALF_BOUND = 1e-5, 2e-3
ROUNDED = 1e-3  # where int8 may round a key the other way
HEADS = (4, 2, 24)


def compare(
    attention: Attention, kv: RandomKV, parts: list[Part], splits: int = 1,
    compute: torch.dtype = torch.float32,
) -> float:  # fmt: skip
    """The distance of a step from the definition; both leave the same cache."""
    batch = make_batch(kv, parts)
    tokens = batch.positions.shape[0]
    step = pack(batch, 1, tokens, *batch.block_tables.shape)
    x, turns = random(1, tokens, HIDDEN), random(2, tokens, attention.head_dim // 2)
    angles = turns.cos(), turns.sin()
    ours, theirs = kv.copy(), kv.copy()
    starts = pairwise(batch.sequence_starts.tolist())
    spans = [Span(start, stop, parts[row].start + stop - start, row)
             for row, (start, stop) in enumerate(starts)]  # fmt: skip
    lone = next((at for at, span in enumerate(spans) if span.stop - span.start > 1), len(spans))
    found = GpuAttention(coarse_gpu(compute), attention)(
        attention.qkv(x), angles, step, ours, (spans[lone:], lone, splits)
    )
    wanted = attention(x, angles, batch, theirs)
    for one, other in zip(ours.held(), theirs.held(), strict=True):
        assert relative(one, other) < ROUNDED
    return relative(found, wanted)


def tokens(count: int) -> list[int]:
    return [0] * count


MIXED = [Part(0, 40, [0]), Part(1, 0, [0]), Part(2, 0, tokens(3)), Part(3, 31, tokens(2))]


@pytest.mark.parametrize(
    ("dtype", "window"), [(torch.float32, None), (torch.float32, 2), (torch.int8, 30)]
)
def test_lone_tokens_and_chunks_in_one_step(dtype: torch.dtype, window: int | None) -> None:
    """A prompt from its start, and the middle of one over the end of a page."""
    attention = random_attention(1, HEADS, "head", window=window)
    bound = ROUNDED if dtype == torch.int8 else BOUND
    assert compare(attention, RandomKV.make(dtype, 2, 24), MIXED, 2) < bound


def test_a_short_chunk_behind_a_lone_token_may_be_one_token() -> None:
    """Its sequence is not the token's number, so that it is no lone one."""
    parts = [Part(0, 9, [0]), Part(1, 3, tokens(2)), Part(2, 17, [0])]
    kv = RandomKV.make(torch.float32, 2, 24)
    assert compare(random_attention(2, HEADS, "full", 1.0), kv, parts) < BOUND


@pytest.mark.parametrize("count", [2, 8, 9])
def test_a_prompt_alone(count: int) -> None:
    kv = RandomKV.make(torch.float32, 2, 24)
    assert compare(random_attention(3, HEADS), kv, [Part(1, 0, tokens(count))]) < BOUND


@pytest.mark.parametrize("start", [1, 8, 60])
@pytest.mark.parametrize("window", [None, 1, 6])
def test_a_chunk_sees_what_came_before_it(window: int | None, start: int) -> None:
    kv = RandomKV.make(torch.bfloat16, 1, 40)
    attention = random_attention(4, (3, 1, 40), window=window)
    # The interpreter cuts bfloat16 off where a device and the definition round.
    assert compare(attention, kv, [Part(1, start, tokens(3))]) < 1e-2


def test_lone_tokens_alone() -> None:
    kv, parts = RandomKV.make(torch.float32, 2, 24), [Part(row, 20 * row, [0]) for row in range(3)]
    assert compare(random_attention(5, HEADS), kv, parts, 4) < BOUND


def test_products_in_float16() -> None:
    kv, attention = RandomKV.make(torch.float32, 2, 24), random_attention(6, HEADS)
    assert BOUND < compare(attention, kv, MIXED, 2, torch.float16) < HALF_BOUND


@pytest.mark.parametrize(
    ("programs", "processors", "context", "splits"),
    [
        (1, 1, 1 << 20, 1),  # nobody is idle
        (8, 8, 1 << 20, 1),
        (8, 9, 1 << 20, 2),
        (1, 132, 1 << 20, SPLITS_MAX),
        (1, 132, PART_MIN, 1),  # too little to share
        (1, 132, PART_MIN + 1, 2),
        (1, 132, 4 * PART_MIN, 4),
        (40, 132, 1 << 20, 4),
    ],
)
def test_parts_are_as_many_as_give_work(
    programs: int, processors: int, context: int, splits: int
) -> None:
    assert choose_splits(programs, processors, context) == splits


def test_what_it_returns_is_not_the_cache_or_the_row() -> None:
    """So that the next layer may write over neither."""
    kv, attention = RandomKV.make(torch.float32, 2, 24), random_attention(7, HEADS)
    batch = make_batch(kv, [Part(0, 0, [0])])
    step, row = pack(batch, 1, 1, 1, 16), attention.qkv(random(1, 1, HIDDEN))
    kept: Tensor = row.clone()
    GpuAttention(coarse_gpu(), attention).lone(row, (torch.ones(1, 12), torch.zeros(1, 12)), step,
                                               kv, 1)  # fmt: skip
    assert torch.equal(row, kept)
