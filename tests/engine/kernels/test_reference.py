"""The definitions against independent ones: torch's own operations and loops written out."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

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
    assert torch.allclose(found, wanted, atol=1e-5, rtol=1e-4)


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


def test_attention_is_that_of_torch() -> None:
    raw = nova_config(num_attention_heads=6, num_key_value_heads=2, head_dim=8)
    kv = PlainKV(ModelConfig.from_dict(raw))
    keys, values = random(7, *kv.keys(0).shape), random(8, *kv.keys(0).shape)
    batch = make_batch(kv, [Part(0, 0, range(5)), Part(1, 9, range(4))])
    query = random(9, 9, 6, 8)
    found = reference.attention(query, keys, values, batch, 8**-0.5)
    for start, stop, owner in ((0, 5, 0), (5, 9, 1)):
        seen = int(batch.positions[stop - 1]) + 1
        blocks = torch.tensor(kv.table(owner, 4))
        key, value = (
            cache[blocks].flatten(0, 1)[:seen].transpose(0, 1) for cache in (keys, values)
        )
        mask = torch.arange(seen) <= batch.positions[start:stop, None]
        wanted = torch.nn.functional.scaled_dot_product_attention(
            query[start:stop].transpose(0, 1), key.repeat_interleave(3, 0),
            value.repeat_interleave(3, 0), attn_mask=mask,
        )  # fmt: skip
        assert relative(found[start:stop], wanted.transpose(0, 1)) < BOUND
