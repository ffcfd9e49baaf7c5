"""The rows of the table fit each other and transformers' configs."""

from __future__ import annotations

import pytest
import transformers

from novamesh_engine.models.traits import (
    IDLE,
    NEUTRAL,
    SHAPE,
    TRAITS,
    is_neutral,
    known,
    understood,
)

CONFIGS = {
    "mixtral": transformers.MixtralConfig, "olmoe": transformers.OlmoeConfig,
    "phimoe": transformers.PhimoeConfig, "qwen2_moe": transformers.Qwen2MoeConfig,
    "qwen3_moe": transformers.Qwen3MoeConfig,
}  # fmt: skip
# Fields of published files that transformers 5 has given up.
OLDER = {"hidden_dropout", "max_window_layers", "norm_topk_prob"}


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
def test_a_family_knows_the_fields_of_its_config_and_no_others(family: str) -> None:
    """The lists are written down here, as transformers is no dependency; they are its own."""
    theirs = set(CONFIGS[family]().to_dict())
    ours = known(TRAITS[family])
    assert theirs <= ours
    assert ours - theirs <= IDLE | SHAPE | OLDER


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_what_a_family_does_not_know_is_not_in_its_default_config(family: str) -> None:
    config = CONFIGS[family]()
    for name in set(NEUTRAL) - known(TRAITS[family]):
        assert is_neutral(name, getattr(config, name, None))


def test_a_neutral_value_of_a_field_is_one_that_nobody_else_needs() -> None:
    assert not (IDLE | SHAPE) & set(NEUTRAL)
    assert not IDLE & SHAPE


def test_every_understood_field_is_refused_elsewhere() -> None:
    for traits in TRAITS.values():
        assert understood(traits) <= set(NEUTRAL)
