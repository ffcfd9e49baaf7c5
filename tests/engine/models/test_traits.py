"""The rows of the table fit each other and transformers' configs."""

from __future__ import annotations

import pytest
import transformers

from novamesh_engine.models.traits import NEUTRAL, TRAITS, understood

CONFIGS = {
    "mixtral": transformers.MixtralConfig, "olmoe": transformers.OlmoeConfig,
    "phimoe": transformers.PhimoeConfig, "qwen2_moe": transformers.Qwen2MoeConfig,
    "qwen3_moe": transformers.Qwen3MoeConfig,
}  # fmt: skip


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_defaults_are_those_of_transformers(family: str) -> None:
    traits, config = TRAITS[family], CONFIGS[family]()
    assert traits.rope_theta == config.rope_parameters["rope_theta"]
    assert traits.norm_eps == config.rms_norm_eps
    assert traits.max_context == config.max_position_embeddings
    assert traits.tie_embeddings == config.tie_word_embeddings
    for flag in (traits.qkv_bias, traits.output_bias, traits.head_bias, traits.renormalise):
        if flag.field is not None:
            assert getattr(config, flag.field) == flag.default


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_a_family_understands_what_its_config_has(family: str) -> None:
    """A field that transformers' config has is understood, or its default is neutral."""
    config = CONFIGS[family]()
    for name in set(NEUTRAL) - understood(TRAITS[family]):
        assert getattr(config, name, None) in NEUTRAL[name]


def test_every_understood_field_is_refused_elsewhere() -> None:
    for traits in TRAITS.values():
        assert understood(traits) <= set(NEUTRAL)
