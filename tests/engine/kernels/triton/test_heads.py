"""Heads of a chunk: normed, clipped, rotated and cached as the reference does, at any head size."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from novamesh_engine.kernels import reference
from novamesh_engine.kernels.device_step import pack
from novamesh_engine.kernels.gpu_attention import GpuAttention, Span
from novamesh_engine.models.attention import Attention
from support.coarse_cuts import coarse_gpu
from support.random_layers import HIDDEN, RandomKV, random, random_attention
from support.tiny_moe import Part, make_batch, relative

BOUND, CUT_OFF = 1e-6, 1e-3  # the interpreter cuts bfloat16 off where a device rounds
DTYPES = (torch.float32, torch.bfloat16, torch.int8)
PART = Part(2, 5, [0, 0, 0])  # three tokens over the end of a page


def chunk(attention: Attention, kv: RandomKV, x: Tensor, slots: Tensor | None = None) -> None:
    """Write keys and values of x to a cache."""
    batch = make_batch(kv, [PART])
    step = pack(batch, 1, 3, *batch.block_tables.shape)
    if slots is not None:
        step.slots.copy_(slots)
    angles = random(3, 3, attention.head_dim // 2)
    GpuAttention(coarse_gpu(), attention).chunks(
        attention.qkv(x), (angles.cos(), angles.sin()), step, kv, [Span(0, 3, 8, 0)]
    )


def defined(attention: Attention, kv: RandomKV, x: Tensor) -> None:
    angles = random(3, 3, attention.head_dim // 2)
    attention(x, (angles.cos(), angles.sin()), make_batch(kv, [PART]), kv)


def check(found: RandomKV, wanted: RandomKV) -> None:
    """Equal but for the last bit: keys are rotated, which two ways round differently."""
    for one, other in zip(found.held(), wanted.held(), strict=True):
        if one.dtype == torch.int8:
            assert int((one.int() - other.int()).abs().max()) <= 1
            assert float((one != other).float().mean()) < 1e-3
        else:
            assert relative(one, other) < (BOUND if one.dtype == torch.float32 else CUT_OFF)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [24, 40, 80, 96])
def test_keys_and_values_are_written_to_their_slots_alone(width: int, dtype: torch.dtype) -> None:
    attention = random_attention(width, (2, 1, width), "head", 1.5)
    given, x = RandomKV.make(dtype, 1, width), random(1, 3, HIDDEN)
    found, wanted = given.copy(), given.copy()
    chunk(attention, found, x)
    defined(attention, wanted, x)
    check(found, wanted)
    blocks = torch.tensor(given.table(2, 1))
    for after, before in zip(found.held(), given.held(), strict=True):
        changed = (after != before).flatten(2).any(-1).any(-1)
        assert torch.equal(changed.nonzero().flatten(), blocks.sort().values)


@pytest.mark.parametrize("norm", ["", "head", "full"])
@pytest.mark.parametrize("clip", [None, 0.7])
def test_norms_and_bounds(clip: float | None, norm: str) -> None:
    attention, x = random_attention(4, (6, 3, 24), norm, clip), random(1, 3, HIDDEN)
    found, wanted = RandomKV.make(torch.float32, 3, 24), RandomKV.make(torch.float32, 3, 24)
    chunk(attention, found, x)
    defined(attention, wanted, x)
    check(found, wanted)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_token_without_a_slot_is_not_written(dtype: torch.dtype) -> None:
    given = RandomKV.make(dtype, 2, 24)
    found, attention = given.copy(), random_attention(5, (4, 2, 24))
    chunk(attention, found, random(1, 3, HIDDEN), torch.tensor([-1, -1, -1]))
    assert all(map(torch.equal, found.held(), given.held()))


def test_int8_takes_a_head_of_zeros_and_ties() -> None:
    """Halves go to the even step, as `write_kv` has it; nothing is divided by nothing."""
    given = RandomKV.make(torch.int8, 1, 24)
    found, attention = given.copy(), random_attention(6, (1, 1, 24))
    assert isinstance(attention.qkv.weight, Tensor)
    attention.qkv.weight[48:] = 0  # values
    attention.qkv.weight[48:, 0] = torch.cat((torch.tensor([127.0]), torch.arange(23) + 0.5))
    x = random(1, 3, HIDDEN)
    x[0], x[1, 0], x[2, 0] = 0, 1, -1
    chunk(attention, found, x)
    slots = make_batch(given, [PART]).slots
    scales, values = torch.ones(64, 1, 8), torch.zeros((64, 1, 8, 24), dtype=torch.int8)
    reference.write_kv(values, scales, slots, attention.qkv(x)[:, None, 48:])
    assert found.scales is not None
    for slot in slots.tolist():
        at = slot // 8, 0, slot % 8
        assert torch.equal(found.cache[1][at], values[at])
        assert float(found.scales[1][at]) == float(scales[at])
