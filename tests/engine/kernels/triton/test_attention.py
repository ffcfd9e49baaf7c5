"""Attention of lone tokens: split or whole, over any cache and head size, is the definition's."""

from __future__ import annotations

import random as dice

import pytest
import torch
from torch import Tensor

from novamesh_engine.kernels.device_step import pack
from novamesh_engine.kernels.gpu import Gpu
from novamesh_engine.kernels.gpu_attention import GpuAttention
from novamesh_engine.models.attention import Attention
from support.coarse_cuts import coarse_gpu
from support.random_layers import HIDDEN, RandomKV, random, random_attention
from support.tiny_moe import Part, make_batch, relative

BOUND, HALF_BOUND = 1e-5, 2e-3
DTYPES = (torch.float32, torch.bfloat16, torch.int8)
# A cache may round the new token the other way, and the interpreter cuts bfloat16 off.
ROUNDED = {torch.float32: BOUND, torch.bfloat16: 5e-3, torch.int8: 1e-3}


def attend(
    gpu: Gpu, attention: Attention, kv: RandomKV, lengths: list[int], splits: int, bucket: int = 0
) -> tuple[Tensor, Tensor, RandomKV, RandomKV]:
    """(found, wanted, both caches) of a token at the end of each sequence, padded to a bucket."""
    batch = make_batch(kv, [Part(row, length - 1, [0]) for row, length in enumerate(lengths)])
    tokens = max(bucket, len(lengths))
    step = pack(batch, 1, tokens, tokens, batch.block_tables.shape[1])
    x = torch.zeros(tokens, HIDDEN)
    x[: len(lengths)] = random(1, len(lengths), HIDDEN)
    turns = random(2, tokens, attention.head_dim // 2)
    angles, first = (turns.cos(), turns.sin()), slice(0, len(lengths))
    ours, theirs = kv.copy(), kv.copy()
    found = GpuAttention(gpu, attention).lone(attention.qkv(x), angles, step, ours, splits)
    wanted = attention(x[first], (angles[0][first], angles[1][first]), batch, theirs)
    return found, wanted, ours, theirs


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [24, 40, 80, 96])
def test_head_sizes_and_caches(width: int, dtype: torch.dtype) -> None:
    """Norms, bounds, windows and splits by lot: the same ones each time."""
    lot = dice.Random(f"{width} {dtype}")
    attention = random_attention(
        width, (3, 1, width), lot.choice(["", "head", "full"]), lot.choice([None, 1.0]),
        lot.choice([None, 7]),
    )  # fmt: skip
    kv = RandomKV.make(dtype, 1, width)
    found, wanted, ours, theirs = attend(coarse_gpu(), attention, kv, [71], lot.choice([1, 4]))
    assert relative(found, wanted) < ROUNDED[dtype]
    for one, other in zip(ours.held(), theirs.held(), strict=True):
        assert relative(one, other) < ROUNDED[dtype]


@pytest.mark.parametrize("splits", [1, 2, 4])
@pytest.mark.parametrize("window", [None, 33])
def test_contexts_end_anywhere(window: int | None, splits: int) -> None:
    """The first token of all, a full block, one more, parts that are empty."""
    attention = random_attention(1, (2, 1, 24), window=window)
    kv = RandomKV.make(torch.float32, 1, 24)
    found, wanted, _, _ = attend(coarse_gpu(), attention, kv, [1, 34, 128], splits)
    assert relative(found, wanted) < BOUND


@pytest.mark.parametrize("window", [1, 2, 31, 32, 200])
def test_windows_begin_anywhere(window: int) -> None:
    attention, kv = random_attention(1, (1, 1, 24), window=window), RandomKV.make(torch.int8, 1, 24)
    found, wanted, _, _ = attend(coarse_gpu(), attention, kv, [65], 2)
    assert relative(found, wanted) < ROUNDED[torch.int8]


@pytest.mark.parametrize("heads", [(4, 4, 16), (17, 1, 16), (6, 2, 16)], ids=str)
def test_groups_of_heads(heads: tuple[int, int, int]) -> None:
    """One query head a key head, more than fit the smallest tile, three."""
    attention, kv = random_attention(2, heads), RandomKV.make(torch.float32, heads[1], 16)
    found, wanted, _, _ = attend(coarse_gpu(), attention, kv, [40], 1)
    assert relative(found, wanted) < BOUND


@pytest.mark.parametrize("splits", [1, 4])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_token_that_is_not_there_sees_and_writes_nothing(dtype: torch.dtype, splits: int) -> None:
    attention, kv = random_attention(3, (2, 1, 24), "head"), RandomKV.make(dtype, 1, 24)
    found, wanted, ours, theirs = attend(coarse_gpu(), attention, kv, [9], splits, bucket=2)
    assert relative(found[:1], wanted) < ROUNDED[dtype]
    assert torch.equal(found[1], torch.zeros(48))
    for one, other in zip(ours.held(), theirs.held(), strict=True):
        assert relative(one, other) < ROUNDED[dtype]


def test_what_others_left_in_a_page_is_not_seen() -> None:
    """Neither behind the last token nor in pages that a table names and nobody uses yet."""
    attention, kv = random_attention(4, (2, 1, 24)), RandomKV.make(torch.float32, 1, 24)
    clean, wanted, _, _ = attend(coarse_gpu(), attention, kv, [11], 2)
    for cache in kv.cache:
        own = cache[torch.tensor(kv.table(0, 2))].clone()
        own[1, :, 2:] = 1e30
        cache.fill_(1e30)
        cache[torch.tensor(kv.table(0, 2))] = own
    found, _, _, _ = attend(coarse_gpu(), attention, kv, [11], 2)
    assert torch.equal(found, clean)
    assert relative(found, wanted) < BOUND


def test_scores_may_be_large() -> None:
    """A softmax that is nearly one token's does not overflow."""
    attention, kv = random_attention(5, (2, 1, 24)), RandomKV.make(torch.float32, 1, 24)
    kv.cache[0].mul_(300)
    found, wanted, _, _ = attend(coarse_gpu(), attention, kv, [70], 4)
    assert relative(found, wanted) < 1e-4


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_products_in_float16(dtype: torch.dtype) -> None:
    attention, kv = random_attention(6, (3, 1, 40)), RandomKV.make(dtype, 1, 40)
    found, wanted, _, _ = attend(coarse_gpu(torch.float16), attention, kv, [71], 2)
    assert relative(found, wanted) < HALF_BOUND + ROUNDED[dtype]


def test_the_default_cut() -> None:
    attention, kv = random_attention(7, (2, 1, 80)), RandomKV.make(torch.float32, 1, 80)
    found, wanted, _, _ = attend(Gpu("cpu", torch.float32), attention, kv, [100], 1)
    assert relative(found, wanted) < BOUND
