"""Packed sequences: whole items, weights on answers only, the same whenever they are made."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from tokenizers import Tokenizer

from novamesh_engine.recipe.packing import make_shard
from novamesh_engine.recipe.preset import PRESETS
from novamesh_engine.recipe.vocabulary import ASSISTANT, END, PAD, USER, train_tokenizer

SMOKE = dataclasses.replace(PRESETS["smoke"], pretrain_steps=5)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(SMOKE, 0)


def test_a_shard_depends_on_its_number_alone(tokenizer: Tokenizer) -> None:
    first, again = make_shard(SMOKE, tokenizer, 0, 2), make_shard(SMOKE, tokenizer, 0, 2)
    assert np.array_equal(first.ids, again.ids)
    assert np.array_equal(first.weights, again.weights)
    assert not np.array_equal(first.ids, make_shard(SMOKE, tokenizer, 0, 3).ids)
    assert first.ids.shape == (SMOKE.shard_steps, SMOKE.batch, SMOKE.context + 1)


def test_chat_weighs_answers_and_their_end(tokenizer: Tokenizer) -> None:
    shard = make_shard(SMOKE, tokenizer, 0, 1)
    text = tokenizer.decode(shard.ids[0, 0][shard.weights[0, 0] > 0], skip_special_tokens=False)
    assert END in text
    assert USER not in text
    assert ASSISTANT not in text
    whole = tokenizer.decode(shard.ids[0, 0], skip_special_tokens=False)
    assert whole.startswith("<|")
    assert whole.count(USER) == whole.count(ASSISTANT) >= 1


def test_pretraining_weighs_everything_but_padding(tokenizer: Tokenizer) -> None:
    shard = make_shard(SMOKE, tokenizer, 0, 0)
    padding = shard.ids == tokenizer.token_to_id(PAD)
    assert np.array_equal(shard.weights > 0, ~padding)
    assert USER not in tokenizer.decode(shard.ids[0, 0], skip_special_tokens=False)


def test_little_is_wasted(tokenizer: Tokenizer) -> None:
    pico = dataclasses.replace(SMOKE, context=192, shard_steps=10)
    shard = make_shard(pico, tokenizer, 0, 3)
    assert (shard.ids == tokenizer.token_to_id(PAD)).mean() < 0.12
