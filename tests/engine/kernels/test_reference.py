"""The definitions against independent ones: torch's own operations and loops written out."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.models.phimoe.modeling_phimoe import sparsemixer

from novamesh_engine.kernels import reference
from novamesh_engine.models.config import ModelConfig
from novamesh_engine.quant.codebook import NF4Matrix, dequantize
from support.tiny_moe import Part, PlainKV, make_batch, nova_config, relative

BOUND = 1e-6


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_rms_norm_is_that_of_torch() -> None:
    x, weight = random(1, 5, 48), random(2, 48)
    wanted = torch.nn.functional.rms_norm(x, (48,), weight, 1e-5)
    assert relative(reference.rms_norm(x, weight, 1e-5), wanted) < BOUND


def test_rotation_turns_pairs_by_the_angle() -> None:
    x, angle = random(3, 1, 1, 6), torch.tensor([[0.1, 0.7, 2.0]])
    found = reference.rotate(x, angle.cos(), angle.sin())[0, 0]
    for i in range(3):
        turned = complex(x[0, 0, i], x[0, 0, i + 3]) * complex(math.cos(angle[0, i]),
                                                               math.sin(angle[0, i]))  # fmt: skip
        assert abs(turned - complex(found[i], found[i + 3])) < 1e-6


def test_linear_of_any_type_is_the_float32_product() -> None:
    x, weight = random(4, 3, 64), random(5, 2100, 64)
    assert relative(reference.linear(x, weight.half()), x @ weight.half().float().T) < BOUND
    packed = torch.randint(0, 256, (2100, 32), dtype=torch.uint8,
                           generator=torch.Generator().manual_seed(6))  # fmt: skip
    matrix = NF4Matrix(packed, torch.rand((2100, 1)).half())
    assert relative(reference.linear(x, matrix), x @ dequantize(matrix).T) < BOUND


@given(st.integers(1, 12), st.integers(1, 6), st.integers(0, 10**6))
@example(2, 5, 817)  # one element of a row cancels out: its rounding is that of the others
@settings(max_examples=30, deadline=None)
def test_experts_are_the_sum_written_out(tokens: int, count: int, seed: int) -> None:
    x, slots = random(seed, tokens, 8), 1 + seed % count
    gate_up, down = random(seed + 1, count, 12, 8), random(seed + 2, count, 8, 6)
    weights, ids = reference.route(x, random(seed + 3, count, 8), slots)
    assert torch.allclose(weights.sum(-1), torch.ones(tokens))
    wanted = torch.zeros(tokens, 8)
    for token in range(tokens):
        for weight, index in zip(weights[token], ids[token].tolist(), strict=True):
            gate, up = (gate_up[index] @ x[token]).chunk(2)
            wanted[token] += weight * (down[index] @ (torch.nn.functional.silu(gate) * up))
    found = reference.experts(x, (weights, ids), gate_up, down)
    largest = wanted.abs().amax(-1, keepdim=True)
    assert bool(((found - wanted).abs() <= 1e-5 + 1e-5 * largest).all())


def test_dispatch_keeps_every_pair_once() -> None:
    ids = torch.tensor([[3, 0], [0, 2], [3, 2]])
    groups = reference.dispatch(ids)
    pairs = [
        (int(token), int(slot), expert)
        for expert, tokens, slots in groups
        for token, slot in zip(tokens, slots, strict=True)
    ]
    assert sorted(pairs) == [(t, s, int(ids[t, s])) for t in range(3) for s in range(2)]
    assert [expert for expert, _, _ in groups] == [0, 2, 3]


def test_a_slot_without_an_expert_adds_nothing() -> None:
    """It is in no group, and a token that has none at all gets zeros."""
    x, gate_up, down = random(1, 3, 8), random(2, 2, 12, 8), random(3, 2, 8, 6)
    weights, ids = random(4, 3, 2), torch.tensor([[-1, 1], [-1, -1], [0, -1]])
    assert [(e, t.tolist(), s.tolist()) for e, t, s in reference.dispatch(ids)] == [
        (0, [2], [0]), (1, [0], [1]),
    ]  # fmt: skip
    found = reference.experts(x, (weights, ids), gate_up, down)
    for token, slot, index in ((0, 1, 1), (2, 0, 0)):
        one = reference.expert(x[token : token + 1], gate_up[index], down[index])
        assert relative(found[token : token + 1], one * weights[token, slot]) < BOUND
    assert torch.equal(found[1], torch.zeros(8))
    assert reference.dispatch(torch.full((2, 2), -1)) == []


def test_sparsemixer_is_that_of_transformers() -> None:
    x, router = random(12, 400, 16), random(13, 6, 16) / 4
    for jitter in (0.0, 0.01, 0.2):
        weights, ids = reference.sparsemixer(x, router, jitter)
        wanted, wanted_ids = sparsemixer(x @ router.T, jitter, training=False)
        assert torch.equal(ids, wanted_ids)
        assert relative(weights, wanted) < BOUND


def caches(seed: int, kv: PlainKV) -> tuple[Tensor, Tensor]:
    return random(seed, *kv.keys(0).shape), random(seed + 1, *kv.keys(0).shape)


@pytest.mark.parametrize("window", [None, 1, 3, 100])
def test_attention_is_that_of_torch(window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = nova_config(num_attention_heads=6, num_key_value_heads=2, head_dim=8)
    kv = PlainKV(ModelConfig.from_dict(raw))
    keys, values = caches(7, kv)
    batch = make_batch(kv, [Part(0, 0, range(5)), Part(1, 9, range(4))])
    query = random(9, 9, 6, 8)
    found = reference.attention(query, keys, values, batch, 8**-0.5, window)
    for start, stop, owner in ((0, 5, 0), (5, 9, 1)):
        seen = int(batch.positions[stop - 1]) + 1
        blocks = torch.tensor(kv.table(owner, 4))
        key, value = (
            cache[blocks].transpose(0, 1).flatten(1, 2)[:, :seen] for cache in (keys, values)
        )
        age = batch.positions[start:stop, None] - torch.arange(seen)
        mask = (age >= 0) & (age < (window or 10**6))
        wanted = torch.nn.functional.scaled_dot_product_attention(
            query[start:stop].transpose(0, 1), key.repeat_interleave(3, 0),
            value.repeat_interleave(3, 0), attn_mask=mask,
        )  # fmt: skip
        assert relative(found[start:stop], wanted.transpose(0, 1)) < BOUND
    monkeypatch.setattr(reference, "SCORES_MAX", 100)  # two rows at a time
    tiled = reference.attention(query, keys, values, batch, 8**-0.5, window)
    assert relative(tiled, found) < BOUND


def test_a_cache_of_int8_is_rounded_by_token_and_head() -> None:
    kv = PlainKV(ModelConfig.from_dict(nova_config()))
    shape = kv.keys(0).shape
    cache, scales = torch.zeros(shape, dtype=torch.int8), torch.zeros(shape[:3])
    new, slots = random(10, 3, 2, 16), torch.tensor([0, 5, 255])
    new[1, 0] = 0
    new[2, 1, :2] = torch.tensor([254.0, 3.0])  # scale 2: 1.5 steps round to the even 2
    reference.write_kv(cache, scales, slots, new)
    for row, slot in enumerate(slots.tolist()):
        scale = kv.token(scales.unsqueeze(-1), slot)
        assert torch.allclose(scale[:, 0], new[row].abs().amax(-1) / 127)
        error = kv.token(cache, slot).float() * scale - new[row]
        assert (error.abs() <= scale / 2 * 1.001).all()
    assert kv.token(cache, 255)[1, :2].tolist() == [127, 2]
    assert not kv.token(cache, 5)[0].any()
    assert cache.count_nonzero() <= 5 * 16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_attention_over_a_narrow_cache_is_that_over_its_values(dtype: torch.dtype) -> None:
    kv = PlainKV(ModelConfig.from_dict(nova_config()))
    batch = make_batch(kv, [Part(0, 0, range(5)), Part(1, 9, range(4))])
    query, slots = random(9, 9, 4, 16), torch.arange(256)
    narrow, wide, scales = [], [], []
    for seed in (7, 8):
        cache = torch.zeros(kv.keys(0).shape, dtype=dtype)
        scale = torch.zeros(cache.shape[:3]) if dtype == torch.int8 else None
        reference.write_kv(cache, scale, slots, random(seed, 256, 2, 16))
        narrow.append(cache)
        scales.append(scale)
        wide.append(cache.float() if scale is None else cache.float() * scale.unsqueeze(-1))
    found = reference.attention(query, *narrow, batch, 0.25, None, *scales)
    assert relative(found, reference.attention(query, *wide, batch, 0.25)) < BOUND
