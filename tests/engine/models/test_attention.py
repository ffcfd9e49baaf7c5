"""What an attention layer writes to the cache, and that it reads no more than it should."""

from __future__ import annotations

import torch
from torch import Tensor

from novamesh_engine.models.attention import Attention
from novamesh_engine.models.config import ModelConfig
from novamesh_engine.models.layers import Linear
from novamesh_engine.models.rope import Rope
from novamesh_engine.models.rotary import Rotary
from support.tiny_moe import Part, PlainKV, make_batch, nova_config


def make(window: int | None = None) -> tuple[Attention, PlainKV, Rotary]:
    config = ModelConfig.from_dict(nova_config())
    rng = torch.Generator().manual_seed(1)
    qkv = Linear(torch.randn((128, 64), generator=rng) * 0.1)
    output = Linear(torch.randn((64, 64), generator=rng) * 0.1)
    layer = Attention(1, 4, 2, 16, qkv, output, window=window)
    return layer, PlainKV(config), Rotary.create(Rope("default", 1e4), 16)


def run(part: Part, x: Tensor, kv: PlainKV, window: int | None = None) -> Tensor:
    layer, _, rotary = make(window)
    batch = make_batch(kv, [part])
    return layer(x, rotary.angles(batch.positions, batch.rope_lengths), batch, kv)


def test_new_keys_and_values_go_to_their_slots_and_nowhere_else() -> None:
    layer, kv, _ = make()
    x = torch.randn((3, 64), generator=torch.Generator().manual_seed(2))
    part = Part(1, 0, range(3))
    run(part, x, kv)
    slots = make_batch(kv, [part]).slots.tolist()
    wanted = layer.qkv(x)[:, 96:].view(3, 2, 16)
    for token, slot in enumerate(slots):
        assert torch.allclose(kv.token(kv.values(1), slot), wanted[token])
        assert not torch.isnan(kv.token(kv.keys(1), slot)).any()
    for slot in set(range(kv.blocks * kv.block_size)) - set(slots):
        assert torch.isnan(kv.token(kv.values(1), slot)).all()
    assert torch.isnan(kv.keys(0)).all()


def test_a_token_does_not_see_what_comes_after_it() -> None:
    _, kv, _ = make()
    x = torch.randn((6, 64), generator=torch.Generator().manual_seed(3))
    whole = run(Part(0, 0, range(6)), x, kv)
    changed = x.clone()
    changed[4:] += 1
    again = run(Part(0, 0, range(6)), changed, kv)
    assert torch.equal(whole[:4], again[:4])
    assert not torch.allclose(whole[4:], again[4:])


def test_chunks_see_what_came_before_them() -> None:
    _, kv, _ = make()
    x = torch.randn((7, 64), generator=torch.Generator().manual_seed(4))
    whole = run(Part(0, 0, range(7)), x, kv)
    first = run(Part(2, 0, range(4)), x[:4], kv)
    second = run(Part(2, 4, range(3)), x[4:], kv)
    assert torch.allclose(torch.cat((first, second)), whole, atol=1e-6)


def test_a_window_hides_what_is_older() -> None:
    _, kv, _ = make()
    x = torch.randn((9, 64), generator=torch.Generator().manual_seed(5))
    whole = run(Part(0, 0, range(9)), x, kv, window=3)
    changed = x.clone()
    changed[2] += 1
    again = run(Part(0, 0, range(9)), changed, kv, window=3)
    assert torch.equal(whole[5:], again[5:])  # the token at 5 sees 3, 4 and 5
    assert not torch.allclose(whole[4], again[4])
    wide = run(Part(0, 0, range(9)), x, kv, window=9)
    assert torch.equal(wide, run(Part(0, 0, range(9)), x, kv))
