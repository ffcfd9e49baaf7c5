"""The decoder against transformers: prefill, cached decode and mixed batches; bound 1e-5."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from novamesh_engine.kernels import choice
from novamesh_engine.kernels.choice import Forward
from novamesh_engine.models.decoder import Decoder
from novamesh_engine.quant.convert import convert
from novamesh_engine.weights.load import load_model
from support.tiny_moe import Part, PlainKV, make_batch, relative, save_mixtral, save_nova

BOUND = 1e-5
SHAPES: list[dict[str, Any]] = [
    {},
    {"num_key_value_heads": 4, "rope_theta": 1e4, "tie_word_embeddings": True},
    {"num_key_value_heads": 1, "head_dim": 32, "num_local_experts": 8, "num_experts_per_tok": 3},
    {"hidden_size": 40, "intermediate_size": 24, "num_local_experts": 2, "num_experts_per_tok": 1},
]


@pytest.fixture(scope="module", params=range(len(SHAPES)))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A Mixtral in transformers and the same in our decoder."""
    folder: Path = tmp_path_factory.mktemp("mixtral")
    oracle = save_mixtral(folder, seed=request.param, **SHAPES[request.param])
    return oracle, load_model(folder).decoder


def tokens_of(count: int, seed: int) -> list[int]:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, 96, (count,), generator=rng).tolist()


def ask(oracle: Any, tokens: list[int]) -> Tensor:
    with torch.no_grad():
        return oracle(torch.tensor([tokens])).logits[0]


def run(decoder: Decoder | Forward, kv: PlainKV, *parts: Part) -> Tensor:
    return decoder.forward(make_batch(kv, parts), kv)


def test_prefill_equals_transformers(pair: Any) -> None:
    oracle, decoder = pair
    tokens = tokens_of(37, 1)
    found = run(decoder, PlainKV(decoder.config), Part(0, 0, tokens))
    assert found.dtype == torch.float32
    assert relative(found, ask(oracle, tokens)) < BOUND


def test_decode_from_the_cache_equals_transformers(pair: Any) -> None:
    oracle, decoder = pair
    tokens, kv = tokens_of(23, 2), PlainKV(decoder.config)
    found = [run(decoder, kv, Part(1, 0, tokens[:9]))]
    found += [run(decoder, kv, Part(1, at, [tokens[at]])) for at in range(9, 23)]
    assert relative(torch.cat(found), ask(oracle, tokens)) < BOUND


def test_prompt_chunks_and_decodes_of_several_requests_mix(pair: Any) -> None:
    oracle, decoder = pair
    first, second, third = tokens_of(20, 3), tokens_of(31, 4), tokens_of(6, 5)
    kv = PlainKV(decoder.config)
    one = run(decoder, kv, Part(0, 0, first[:19]), Part(2, 0, second[:10]))
    two = run(decoder, kv, Part(2, 10, second[10:30]), Part(0, 19, first[19:]), Part(3, 0, third))
    three = run(decoder, kv, Part(2, 30, second[30:]))
    assert relative(torch.cat((one[:19], two[20:21])), ask(oracle, first)) < BOUND
    assert relative(torch.cat((one[19:], two[:20], three)), ask(oracle, second)) < BOUND
    assert relative(two[21:], ask(oracle, third)) < BOUND


def test_only_the_rows_asked_for_come_back(pair: Any) -> None:
    _, decoder = pair
    kv = PlainKV(decoder.config)
    batch = make_batch(kv, [Part(0, 0, tokens_of(8, 6))])
    everything = decoder.forward(batch, kv)
    asked = type(batch)(*(getattr(batch, name) for name in batch.__slots__[:-1]),
                        logit_rows=torch.tensor([7, 2]))  # fmt: skip
    assert relative(decoder.forward(asked, kv), everything[[7, 2]]) < BOUND


@pytest.mark.parametrize("changes", [{}, {"head_dim": 24, "num_attention_heads": 8}])
@pytest.mark.skipif(not choice.look().runnable, reason="torch sums as it likes")
def test_company_and_cuts_change_no_bit(tmp_path: Path, changes: dict[str, Any]) -> None:
    """With native kernels a token's logits depend on its own sequence alone, bit for bit.

    A token by itself sums its attention in another order than one of a chunk, so that decoding
    equals prefill to rounding.
    """
    save_nova(tmp_path / "plain", seed=8, **changes)
    model = load_model(convert(tmp_path / "plain", tmp_path / "nf4", "tiny").path)
    decoder, kv = choice.bind(model.decoder), PlainKV(model.config)
    tokens = tokens_of(41, 7)
    whole = run(decoder, kv, Part(0, 0, tokens))
    singly = [run(decoder, kv, Part(1, at, [token])) for at, token in enumerate(tokens)]
    assert relative(torch.cat(singly), whole) < 1e-6
    first = run(decoder, kv, Part(2, 0, tokens[:7]), Part(3, 0, tokens_of(9, 8)))
    second = run(decoder, kv, Part(3, 9, [5]), Part(2, 7, tokens[7:]))
    assert torch.equal(torch.cat((first[:7], second[1:])), whole)
