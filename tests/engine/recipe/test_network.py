"""The trainable model and the engine's decoder are the same function."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer

from novamesh_engine.recipe.export import write_plain
from novamesh_engine.recipe.network import Network, attend_causally, rope_tables, route
from novamesh_engine.recipe.preset import PRESETS
from novamesh_engine.weights.load import load_model
from support.tiny_moe import Part, PlainKV, make_batch, relative

SMOKE = PRESETS["smoke"]


def make_network(seed: int) -> Network:
    """A network whose parts all matter."""
    torch.manual_seed(seed)
    network = Network(SMOKE)
    with torch.no_grad():
        for value in network.parameters():
            value.normal_(0.0, 0.15)
    return network


def test_logits_equal_the_engines(tmp_path: Path) -> None:
    network = make_network(3)
    tokenizer = Tokenizer.from_str(
        '{"version":"1.0","model":{"type":"BPE","vocab":{},"merges":[]}}'
    )
    tokenizer.add_special_tokens(["<|pad|>", "<|end|>"])
    write_plain(network, tokenizer, tmp_path)
    decoder = load_model(tmp_path).decoder
    tokens = torch.randint(0, SMOKE.vocab, (40,), generator=torch.Generator().manual_seed(4))
    kv = PlainKV(decoder.config)
    found = decoder.forward(make_batch(kv, [Part(0, 0, tokens.tolist())]), kv)
    with torch.no_grad():
        wanted = network(tokens[None])[0][0]
    assert relative(found, wanted) < 1e-5


def test_two_experts_share_each_token() -> None:
    x = torch.randn(50, 64, generator=torch.Generator().manual_seed(5))
    gate, probabilities = route(x, torch.randn(8, 64, generator=torch.Generator().manual_seed(6)))
    assert (gate > 0).sum(-1).eq(2).all()
    torch.testing.assert_close(gate.sum(-1), torch.ones(50))
    best = probabilities.topk(2).indices
    assert torch.equal((gate > 0).nonzero()[:, 1].view(50, 2), best.sort().values)


def test_no_token_sees_the_future() -> None:
    q, k, v = torch.randn(3, 1, 2, 9, 16, generator=torch.Generator().manual_seed(7))
    before = attend_causally(q, k, v)
    k[:, :, 5:] += 1
    v[:, :, 5:] -= 1
    after = attend_causally(q, k, v)
    torch.testing.assert_close(after[:, :, :5], before[:, :, :5])
    assert not torch.allclose(after[:, :, 5:], before[:, :, 5:])


def test_position_zero_is_not_turned() -> None:
    cos, sin = rope_tables(4, 8)
    assert torch.equal(cos[0], torch.ones(8))
    assert torch.equal(sin[0], torch.zeros(8))
