"""Sizes from a shape are those of the profile's files, of the cache and of what a step reads."""

from __future__ import annotations

import pytest

from novamesh_engine.catalogue import locate
from novamesh_engine.kv_cache import DTYPES, slot_bytes
from novamesh_engine.models.config import ModelConfig
from novamesh_engine.quant.tensors import profile_tensors
from novamesh_engine.roofline import step_bytes
from novamesh_engine.weights.footprint import Footprint
from novamesh_engine.weights.load import load_model
from support.known_models import CATALOGUED, QWEN3_30B, QWEN15_A27B
from support.tiny_moe import nova_config

CONFIGS = {
    **CATALOGUED,
    "tied": nova_config(),
    "some layers dense": QWEN3_30B | {"mlp_only_layers": [0, 5]},
    "half the layers dense": QWEN15_A27B | {"decoder_sparse_step": 2},
    "all layers dense": QWEN3_30B | {"decoder_sparse_step": 64},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_whole_is_what_a_profile_holds(name: str) -> None:
    config = ModelConfig.from_dict(CONFIGS[name])
    stored = [each for tensor in profile_tensors(config, ()) for each in tensor.stored]
    found = Footprint.of(config)
    assert found.total == sum(each.size for each in stored)
    experts = [each.size for each in stored if ".mlp.experts." in each.name]
    assert found.experts * found.expert_row == sum(experts)
    assert found.sparse_layers == config.layers - len(config.dense_layers)
    embedding = next(each.size for each in stored if "embed_tokens" in each.name)
    assert found.embedding == (0 if config.tie_embeddings else embedding)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_slot_is_what_the_cache_takes(dtype: str) -> None:
    for raw in CONFIGS.values():
        config = ModelConfig.from_dict(raw)
        assert Footprint.of(config).slot(dtype) == slot_bytes(config, DTYPES[dtype])


def test_a_step_reads_what_the_roofline_counts_of_a_loaded_model() -> None:
    """The roofline leaves out norms and counts the embedding's row; here it is the other way."""
    loaded = load_model(locate("nova-pico"), verify=False)
    decoder, config = loaded.decoder, loaded.config
    norms = (2 * config.layers + 1) * config.hidden_size * 4
    row = decoder.embedding[0].nbytes
    assert Footprint.of(config).step == step_bytes(decoder) - row + norms


def test_phi_mini_is_what_was_published_of_it() -> None:
    """The research's figures: 4.26 GB resident, 1.19 GB a token, 128 KiB of KV a token."""
    found = Footprint.of(ModelConfig.from_dict(CATALOGUED["phi-mini-moe-instruct"]))
    assert found.total == pytest.approx(4.26e9, rel=2e-3)
    assert found.step == pytest.approx(1.19e9, rel=1e-2)
    assert found.slot("bf16") == 128 << 10
