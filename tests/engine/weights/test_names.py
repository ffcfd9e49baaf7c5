"""Tensor names are those that transformers writes, and ours beside them."""

from __future__ import annotations

from novamesh_engine.models.config import ModelConfig
from novamesh_engine.weights import names
from support.tiny_moe import nova_config, nova_tensors


def test_plain_names_are_those_of_a_checkpoint() -> None:
    raw = nova_config()
    config = ModelConfig.from_dict(raw)
    found = {names.EMBEDDING, names.NORM}
    for layer in range(config.layers):
        found |= {*names.norm_names(layer), names.router_name(config, layer)}
        found |= {names.attention_name(layer, key) for key in "qkvo"}
        for expert in range(config.experts):
            for key in (config.traits.gate, config.traits.up, config.traits.down):
                found.add(names.expert_name(config, layer, expert, key))
    assert found == set(nova_tensors(raw))


def test_packed_names_stand_beside_them() -> None:
    config = ModelConfig.from_dict(nova_config())
    assert names.stack_name(config, 3, "down") == "model.layers.3.mlp.experts.down_proj"
    assert names.attention_name(0, "qkv") == "model.layers.0.self_attn.qkv_proj.weight"
