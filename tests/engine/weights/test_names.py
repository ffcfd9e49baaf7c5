"""Tensor names are those that transformers writes, and ours beside them."""

from __future__ import annotations

from typing import Any

from novamesh_engine.models.config import ModelConfig
from novamesh_engine.models.traits import TRAITS, Naming, known
from novamesh_engine.weights.names import find_naming, layer_pieces, outer_pieces, pieces
from support.tiny_moe import SHAPE, nova_config, nova_tensors


def family(name: str, **changes: Any) -> ModelConfig:
    sizes = {
        "num_experts": 4, "intermediate_size": 96, "moe_intermediate_size": 64,
        "shared_expert_intermediate_size": 128,
    }  # fmt: skip
    own = {field: size for field, size in sizes.items() if field in known(TRAITS[name])}
    return ModelConfig.from_dict(SHAPE | own | {"model_type": name} | changes)


def test_parts_are_the_tensors_of_a_checkpoint() -> None:
    raw = nova_config()
    config, tensors = ModelConfig.from_dict(raw), nova_tensors(raw)
    parts = [p for piece in pieces(config, find_naming(config, tensors)) for p in piece.parts]
    assert {part.name: part.shape for part in parts} == {
        name: tuple(tensor.shape) for name, tensor in tensors.items()
    }


def test_a_profile_has_one_name_for_all_families() -> None:
    for name, traits in TRAITS.items():
        config = family(name)
        for naming in traits.namings:
            roles = layer_pieces(config, naming, 1)
            assert roles["router"].name == "model.layers.1.mlp.gate.weight"
            assert roles["down"].name == "model.layers.1.mlp.experts.down_proj"
            assert roles["qkv"].name == "model.layers.1.self_attn.qkv_proj.weight"
            assert {roles[role].form for role in ("qkv", "output", "gate_up", "down")} == {"nf4"}
            assert roles["router"].form == roles["mlp_norm"].form == "float32"
        assert outer_pieces(config)["embedding"].form == "float16"


def test_experts_are_found_under_each_name_they_have_had() -> None:
    config = family("phimoe")
    slim, native = TRAITS["phimoe"].namings
    prefix = "model.layers.0."
    assert find_naming(config, {prefix + "block_sparse_moe.experts.0.w1.weight"}) == slim
    assert find_naming(config, {prefix + "mlp.experts.gate_up_proj"}) == native
    assert find_naming(config, ()) == slim == Naming("block_sparse_moe", "gate", ("w1", "w3", "w2"))
    parts = [part.name for part in layer_pieces(config, slim, 0)["gate_up"].parts]
    assert [name.rsplit("experts.")[1] for name in parts[:3]] == [
        "0.w1.weight", "0.w3.weight", "1.w1.weight",
    ]  # fmt: skip
    assert layer_pieces(config, native, 0)["router"].parts[0].name.endswith("mlp.router.weight")


def test_roles_follow_the_config() -> None:
    phi = family("phimoe", attention_bias=True, lm_head_bias=True)
    assert {"attention_norm_bias", "qkv_bias", "output_bias"} <= set(
        layer_pieces(phi, phi.traits.namings[0], 0)
    )
    assert {"norm_bias", "head_bias"} <= set(outer_pieces(phi))
    olmoe = family("olmoe", head_dim=32)
    roles = layer_pieces(olmoe, olmoe.traits.namings[0], 0)
    assert (roles["query_norm"].shape, roles["key_norm"].shape) == ((128,), (64,))
    qwen3 = family("qwen3_moe", head_dim=32, mlp_only_layers=[0])
    roles = layer_pieces(qwen3, qwen3.traits.namings[0], 0)
    assert roles["query_norm"].shape == roles["key_norm"].shape == (32,)
    assert "router" not in roles
    assert roles["gate_up"].shape == (192, 64)
    qwen2 = family("qwen2_moe")
    roles = layer_pieces(qwen2, qwen2.traits.namings[0], 0)
    assert "output_bias" not in roles
    assert roles["shared_gate_up"].shape == (256, 64)
    assert (roles["shared_gate"].shape, roles["shared_gate"].form) == ((1, 64), "float32")


def test_dense_layers_first_do_not_hide_the_experts() -> None:
    config = family("qwen3_moe", mlp_only_layers=[0])
    stacked = {"model.layers.1.mlp.experts.gate_up_proj"}
    assert find_naming(config, stacked).keys is None
    assert find_naming(family("qwen3_moe", mlp_only_layers=[0, 1]), stacked).keys is not None
