"""Reading config.json: old and new spellings, and refusals that name file and field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from novamesh_engine.models.config import ModelConfig
from novamesh_engine.models.traits import NEUTRAL, TRAITS, known
from novamesh_proto.errors import Code, NovaMeshError
from support.known_models import (
    OLMOE_1B_7B,
    PHI_35_MOE,
    PHI_MINI,
    PHI_TINY,
    QWEN3_30B,
    QWEN15_A27B,
)
from support.tiny_moe import nova_config, nova_tensors


def mixtral(**changes: Any) -> dict[str, Any]:
    raw = {
        "model_type": "mixtral", "vocab_size": 32000, "hidden_size": 4096,
        "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2,
        "max_position_embeddings": 32768, "rms_norm_eps": 1e-5, "eos_token_id": 2,
    }  # fmt: skip
    return raw | changes


def test_mixtral_8x7b_has_its_known_size() -> None:
    config = ModelConfig.from_dict(mixtral())
    assert config.parameters == 46_702_792_704
    assert round(config.active_parameters / 1e9, 1) == 12.9
    assert (config.head_dim, config.eos_ids, config.rope.theta) == (128, (2,), 1e6)


@pytest.mark.parametrize(
    ("raw", "parameters", "active", "context"),
    [
        (QWEN3_30B, 30_532_122_624, 3.4, 262144),
        (QWEN15_A27B, 14_315_784_192, 2.7, 8192),
        (OLMOE_1B_7B, 6_919_161_856, 1.3, 4096),
        (PHI_35_MOE, 41_873_153_344, 6.6, 131072),
        (PHI_MINI, 7_647_632_704, 2.4, 4096),
        (PHI_TINY, 3_755_220_288, 1.3, 4096),
    ],
)
def test_known_models_have_their_known_size(
    raw: dict[str, Any], parameters: int, active: float, context: int
) -> None:
    """The fields of the published configs that count, and the published numbers of weights."""
    config = ModelConfig.from_dict(raw)
    assert config.parameters == parameters
    assert round(config.active_parameters / 1e9, 1) == active
    assert config.max_context == context


def test_parameters_are_those_on_disk() -> None:
    raw = nova_config()
    held = sum(tensor.numel() for tensor in nova_tensors(raw).values())
    assert ModelConfig.from_dict(raw).parameters == held


def test_other_spellings_and_defaults() -> None:
    raw = nova_config(num_key_value_heads=None, eos_token_id=[2, 5], bos_token_id=None)
    config = ModelConfig.from_dict(raw)
    assert (config.kv_heads, config.eos_ids, config.bos_id) == (4, (2, 5), None)
    assert (config.experts, config.expert_size, config.tie_embeddings) == (4, 64, True)
    assert ModelConfig.from_dict(mixtral(head_dim=64)).head_dim == 64


def windows(**changes: Any) -> tuple[int | None, ...]:
    return ModelConfig.from_dict(mixtral(**{"num_hidden_layers": 4} | changes)).windows


def test_a_sliding_window_is_one_of_every_layer() -> None:
    assert windows() == windows(sliding_window=32768) == (None,) * 4
    assert windows(sliding_window=9) == (9,) * 4


def test_qwens_windows_are_switched_and_alternate() -> None:
    qwen3 = {"model_type": "qwen3_moe", "sliding_window": 9, "moe_intermediate_size": 64}
    assert windows(**qwen3) == windows(**qwen3, use_sliding_window=False) == (None,) * 4
    assert windows(**qwen3, use_sliding_window=True, max_window_layers=1) == (9,) * 4
    qwen2 = qwen3 | {"model_type": "qwen2_moe", "shared_expert_intermediate_size": 64}
    assert windows(**qwen2) == (None,) * 4
    assert windows(**qwen2, use_sliding_window=True) == (9, None, 9, None)
    assert windows(**qwen2, use_sliding_window=True, max_window_layers=2) == (9, None, None, None)
    kinds = ["full_attention", "sliding_attention", "full_attention", "full_attention"]
    chosen = windows(**qwen2, use_sliding_window=True, layer_types=kinds)
    assert chosen == (None, 9, None, None)


def test_layers_without_experts_are_those_of_qwen() -> None:
    raw = mixtral(
        model_type="qwen3_moe", moe_intermediate_size=64, num_hidden_layers=6,
        mlp_only_layers=[3, 40], decoder_sparse_step=2,
    )  # fmt: skip
    config = ModelConfig.from_dict(raw)
    assert config.dense_layers == {0, 2, 3, 4}
    assert config.dense_size == 14336


def test_a_head_dim_is_stated_or_a_habit() -> None:
    assert not ModelConfig.from_dict(mixtral()).head_dim_stated
    assert ModelConfig.from_dict(mixtral(head_dim=64)).head_dim_stated


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"model_type": "bloom"}, Code.UNSUPPORTED, 'model_type is "bloom"'),
        ({"model_type": None}, Code.UNSUPPORTED, "model_type is null"),
        ({"model_type": ["mixtral"]}, Code.UNSUPPORTED, "model_type"),
        ({"hidden_act": "gelu"}, Code.UNSUPPORTED, 'hidden_act is "gelu", not "silu"'),
        ({"attention_bias": True}, Code.UNSUPPORTED, "attention_bias is true"),
        ({"norm_topk_prob": False}, Code.UNSUPPORTED, "norm_topk_prob"),
        ({"clip_qkv": 8.0}, Code.UNSUPPORTED, "clip_qkv is 8.0, not null"),
        ({"lm_head_bias": True}, Code.UNSUPPORTED, "lm_head_bias is true"),
        ({"mlp_only_layers": [1]}, Code.UNSUPPORTED, "mlp_only_layers is [1]"),
        ({"quantization_config": {"bits": 4}}, Code.UNSUPPORTED, "quantization_config is"),
        ({"layer_types": ["sliding_attention"] * 32}, Code.UNSUPPORTED, "layer_types is"),
        ({"use_sliding_window": True}, Code.UNSUPPORTED, "use_sliding_window is true"),
        ({"query_pre_attn_scalar": 256}, Code.UNSUPPORTED, "query_pre_attn_scalar is 256, not abs"),
        ({"attention_sink": True}, Code.UNSUPPORTED, "attention_sink is true, not absent"),
        ({"rope_interleaved": True}, Code.UNSUPPORTED, "rope_interleaved is true, not absent"),
        ({"final_logit_softcapping": 30.0}, Code.UNSUPPORTED, "final_logit_softcapping is 30.0"),
        ({"residual_multiplier": 0.22}, Code.UNSUPPORTED, "residual_multiplier is 0.22, not 1"),
        ({"use_rope": False}, Code.UNSUPPORTED, "use_rope is false, not true"),
        ({"moe_intermediate_size": 64}, Code.UNSUPPORTED, "moe_intermediate_size is 64, not abs"),
        ({"max_window_layers": 28}, Code.UNSUPPORTED, "max_window_layers is 28"),
        ({"a trait of tomorrow": [0]}, Code.UNSUPPORTED, "a trait of tomorrow is [0], not absent"),
        ({"model_type": "olmoe", "sliding_window": 8}, Code.UNSUPPORTED, "sliding_window is 8"),
        ({"model_type": "phimoe", "num_experts_per_tok": 1}, Code.UNSUPPORTED, "per_tok is 1"),
        ({"model_type": "phimoe", "router_jitter_noise": -1}, Code.CORRUPT, "router_jitter_noise"),
        ({"model_type": "qwen2_moe"}, Code.CORRUPT, "moe_intermediate_size is missing"),
        ({"sliding_window": 0}, Code.CORRUPT, "sliding_window is 0"),
        ({"rope_scaling": {"type": "ntk"}}, Code.UNSUPPORTED, 'rope_scaling.rope_type is "ntk"'),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, Code.UNSUPPORTED, "partial_rotary"),
        ({"rope_parameters": {"rope_theta": "x"}}, Code.CORRUPT, "rope_parameters: rope_theta is"),
        ({"rope_scaling": "yarn"}, Code.CORRUPT, "rope_scaling"),
        ({"vocab_size": None}, Code.CORRUPT, "vocab_size is missing"),
        ({"hidden_size": 64.5}, Code.CORRUPT, "hidden_size is 64.5"),
        ({"hidden_size": True}, Code.CORRUPT, "hidden_size is true"),
        ({"num_hidden_layers": -1}, Code.CORRUPT, "num_hidden_layers is -1"),
        ({"num_hidden_layers": 10**30}, Code.CORRUPT, "num_hidden_layers"),
        ({"num_key_value_heads": 3}, Code.CORRUPT, "num_key_value_heads is 3, not a divisor"),
        ({"num_experts_per_tok": 9}, Code.CORRUPT, "num_experts_per_tok is 9"),
        ({"rms_norm_eps": -1}, Code.CORRUPT, "rms_norm_eps"),
        ({"rms_norm_eps": float("nan")}, Code.CORRUPT, "rms_norm_eps"),
        ({"head_dim": 7}, Code.CORRUPT, "head_dim"),
        ({"hidden_size": 4097}, Code.CORRUPT, "head_dim"),
        ({"eos_token_id": 32000}, Code.CORRUPT, "eos_token_id is 32000"),
        ({"bos_token_id": "x"}, Code.CORRUPT, "bos_token_id"),
        ({"tie_word_embeddings": 1}, Code.CORRUPT, "tie_word_embeddings"),
    ],
)
def test_what_is_refused_and_how(changes: dict[str, Any], code: Code, words: str) -> None:
    with pytest.raises(NovaMeshError) as caught:
        ModelConfig.from_dict(mixtral(**changes), "/models/x/config.json")
    assert caught.value.code is code
    assert caught.value.message.startswith("/models/x/config.json: ")
    assert words in caught.value.message
    assert caught.value.hint


def test_unknown_fields_that_say_nothing_and_idle_ones_are_read_over() -> None:
    empty = {"attention_sink": False, "attn_logit_softcapping": None, "a": [], "b": {}}
    neutral = {"residual_multiplier": 1.0, "n_group": 1, "use_rope": True, "mlp_bias": False}
    assert ModelConfig.from_dict(mixtral(**empty, **neutral)) == ModelConfig.from_dict(mixtral())


# What the published files say beside the fields that count.
WRITERS: dict[str, Any] = {
    "architectures": ["AForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1,
    "eos_token_id": 2, "hidden_act": "silu", "initializer_range": 0.02, "rms_norm_eps": 1e-5,
    "output_router_logits": False, "router_aux_loss_coef": 0.001, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16", "transformers_version": "4.43.3", "use_cache": True,
}  # fmt: skip
PHI_WRITERS = WRITERS | {
    "auto_map": {"AutoConfig": "configuration_slimmoe.PhiMoEConfig"}, "hidden_dropout": 0.0,
    "input_jitter_noise": 0.01, "router_jitter_noise": 0.01, "_name_or_path": "a/b",
}  # fmt: skip


@pytest.mark.parametrize(
    ("raw", "more"),
    [
        (mixtral(), WRITERS | {"sliding_window": None, "rope_theta": 1e6, "pad_token_id": 0}),
        (QWEN3_30B, WRITERS | {"torch_dtype": None, "dtype": "bfloat16"}),
        (QWEN15_A27B, WRITERS | {"decoder_sparse_step": 1, "rope_theta": 1e6}),
        (OLMOE_1B_7B, WRITERS | {"pad_token_id": 1, "rope_scaling": None, "rope_theta": 1e4}),
        (PHI_35_MOE, PHI_WRITERS),
        (PHI_MINI, PHI_WRITERS),
        (PHI_TINY, PHI_WRITERS),
    ],
)
def test_published_files_are_read_whole(raw: dict[str, Any], more: dict[str, Any]) -> None:
    assert ModelConfig.from_dict(raw | more).parameters == ModelConfig.from_dict(raw).parameters


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=5,
)


ROPES = ("rope_parameters", "rope_scaling", "original_max_position_embeddings")
OTHERS = ("head_dim", "sliding_window", "layer_types", "router_jitter_noise", "what nobody knows")


@given(
    st.sampled_from(sorted(TRAITS)), st.sampled_from([*mixtral(), *NEUTRAL, *ROPES, *OTHERS]), JSON
)
@settings(max_examples=200, deadline=None)
def test_any_value_anywhere_gives_a_config_or_our_error(
    family: str, field: str, value: Any
) -> None:
    own = {
        name: 64
        for name in ("moe_intermediate_size", "shared_expert_intermediate_size")
        if name in known(TRAITS[family])
    }
    try:
        ModelConfig.from_dict(mixtral(model_type=family) | own | {field: value})
    except NovaMeshError as error:
        assert error.code in (Code.UNSUPPORTED, Code.CORRUPT)  # noqa: PT017


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b" " * (2 << 20)])
def test_a_damaged_file_is_named(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(data)
    with pytest.raises(NovaMeshError, match=r"config\.json: ") as caught:
        ModelConfig.from_file(path)
    assert caught.value.code is Code.CORRUPT


def test_a_missing_file_says_what_to_name(tmp_path: Path) -> None:
    with pytest.raises(NovaMeshError, match="cannot be read") as caught:
        ModelConfig.from_file(tmp_path / "config.json")
    assert caught.value.code is Code.MODEL_NOT_FOUND
    (tmp_path / "config.json").write_text(json.dumps(mixtral()))
    assert ModelConfig.from_file(tmp_path / "config.json").model_type == "mixtral"
