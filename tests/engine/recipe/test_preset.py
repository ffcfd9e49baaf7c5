"""Presets: found by name, and named by a digest that sees every field."""

from __future__ import annotations

import dataclasses

import pytest

from novamesh_engine.recipe.preset import PRESETS, find_preset
from novamesh_proto.errors import NovaMeshError


def test_pico_is_the_built_in_shape() -> None:
    pico = find_preset("pico")
    assert (pico.layers, pico.hidden, pico.experts, pico.experts_per_token) == (6, 128, 8, 2)
    assert pico.pretrain_steps % pico.shard_steps == 0, "a shard is of one phase"


def test_an_unknown_preset_is_refused_with_the_choices() -> None:
    with pytest.raises(NovaMeshError, match="no preset 'large'") as caught:
        find_preset("large")
    assert "pico, smoke" in caught.value.hint


def test_a_digest_changes_with_any_field() -> None:
    smoke = PRESETS["smoke"]
    for field in dataclasses.fields(smoke):
        value = getattr(smoke, field.name)
        changed = dataclasses.replace(smoke, **{field.name: value * 2})
        assert changed.digest != smoke.digest, field.name
