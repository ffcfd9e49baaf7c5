"""Rotary kinds from config.json: both spellings, defaults, contexts, refusals."""

from __future__ import annotations

import math
from typing import Any

import pytest

from novamesh_engine.models.config import ModelConfig
from novamesh_engine.models.rope import Rope
from novamesh_proto.errors import Code, NovaMeshError

LONG = {"short_factor": [1.0] * 64, "long_factor": [2.0] * 64}


def config(family: str = "mixtral", **changes: Any) -> ModelConfig:
    raw = {
        "model_type": family, "vocab_size": 96, "hidden_size": 512, "intermediate_size": 64,
        "num_hidden_layers": 1, "num_attention_heads": 4, "num_local_experts": 4,
        "num_experts_per_tok": 2, "max_position_embeddings": 4096,
    }  # fmt: skip
    return ModelConfig.from_dict(raw | changes)


def rope(**changes: Any) -> Rope:
    return config(**changes).rope


@pytest.mark.parametrize(
    ("changes", "theta"),
    [
        ({"rope_theta": 5e5}, 5e5),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 2e5}}, 2e5),
        ({"rope_parameters": {"rope_type": "default"}, "rope_theta": 4e5}, 4e5),
        ({"rope_scaling": {"type": "default"}, "rope_theta": 3e4}, 3e4),
        ({"rope_scaling": None, "rope_parameters": None}, 1e6),
    ],
)
def test_theta_is_read_old_and_new(changes: dict[str, Any], theta: float) -> None:
    assert rope(**changes) == Rope("default", theta)


def test_old_and_new_spelling_are_one() -> None:
    old = rope(rope_scaling={"type": "linear", "factor": 2}, rope_theta=1e4)
    new = rope(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4})
    assert old == new == Rope("linear", 1e4, 2.0)


def test_yarn_scales_by_the_log_of_its_factor() -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}
    plain = rope(rope_parameters=yarn)
    assert plain.scale == plain.long_scale == pytest.approx(0.1 * math.log(4) + 1)
    assert rope(rope_parameters=yarn | {"attention_factor": 0.7}).scale == 0.7
    both = rope(rope_parameters=yarn | {"mscale": 2.0, "mscale_all_dim": 1.0}).scale
    assert both == pytest.approx((0.2 * math.log(4) + 1) / (0.1 * math.log(4) + 1))
    assert config(rope_parameters=yarn).max_context == 8192
    implied = rope(rope_parameters=yarn | {"factor": None})
    assert implied.factor == 2.0


def test_longrope_scales_by_both_contexts() -> None:
    long = LONG | {"rope_type": "longrope", "original_max_position_embeddings": 1024}
    found = rope(rope_parameters=long)
    assert found.scale == found.long_scale == pytest.approx(math.sqrt(1 + math.log(4, 1024)))
    assert rope(rope_parameters=long | {"attention_factor": 1.5}).scale == 1.5
    outside = rope(rope_parameters=long, original_max_position_embeddings=512)
    assert outside.original == 512  # beside the object counts before inside
    assert config(rope_parameters=long).max_context == 4096


def test_phis_own_scales_are_required_and_used() -> None:
    long = LONG | {"type": "longrope", "original_max_position_embeddings": 1024}
    scales = {"short_mscale": 1.25, "long_mscale": 1.5}
    found = config("phimoe", rope_scaling=long | scales).rope
    assert (found.scale, found.long_scale) == (1.25, 1.5)
    with pytest.raises(NovaMeshError, match="short_mscale is missing"):
        config("phimoe", rope_scaling=long)
    with pytest.raises(NovaMeshError, match=r"short_mscale is 1\.25, not absent"):
        config("mixtral", rope_scaling=long | scales)
    with pytest.raises(NovaMeshError, match='rope_type is "yarn"'):
        config("phimoe", rope_scaling={"type": "yarn", "factor": 2.0})


def test_dynamic_reaches_its_factor_times_the_context() -> None:
    dynamic = {"rope_type": "dynamic", "factor": 2.5}
    assert config(rope_parameters=dynamic).max_context == 10240
    assert config(rope_parameters={"rope_type": "linear", "factor": 2.5}).max_context == 4096


@pytest.mark.parametrize(
    ("parameters", "code", "words"),
    [
        ({"rope_type": "mrope"}, Code.UNSUPPORTED, 'rope_type is "mrope", not one of default'),
        ({"rope_type": ["yarn"]}, Code.UNSUPPORTED, "rope_type is"),
        ({"mrope_section": [1]}, Code.UNSUPPORTED, "mrope_section is [1], not absent"),
        ({"full_attention": {}}, Code.UNSUPPORTED, "full_attention"),
        ({"partial_rotary_factor": 0.5}, Code.UNSUPPORTED, "partial_rotary_factor is 0.5"),
        ({"rope_type": "linear"}, Code.CORRUPT, "factor is missing"),
        ({"rope_type": "longrope"}, Code.CORRUPT, "short_factor is missing"),
        ({"rope_type": "llama3", "factor": 2, "low_freq_factor": 4, "high_freq_factor": 1},
         Code.CORRUPT, "high_freq_factor is 1, not a number above 4"),
        ({"rope_type": "yarn", "factor": 2, "truncate": 1}, Code.CORRUPT, "truncate is 1"),
    ],
)  # fmt: skip
def test_what_is_refused_and_how(parameters: dict[str, Any], code: Code, words: str) -> None:
    with pytest.raises(NovaMeshError) as caught:
        config(rope_parameters=parameters)
    assert caught.value.code is code
    assert words in caught.value.message


def test_a_partial_factor_outside_is_refused_too() -> None:
    with pytest.raises(NovaMeshError, match=r"partial_rotary_factor is 0\.25"):
        config(partial_rotary_factor=0.25)
