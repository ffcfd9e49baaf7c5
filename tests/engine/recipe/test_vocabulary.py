"""The tokenizer: deterministic, byte-complete, single digits, the chat form."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from novamesh_engine.chat_template import ChatTemplate
from novamesh_engine.recipe.preset import PRESETS
from novamesh_engine.recipe.vocabulary import (
    CHAT_TEMPLATE,
    SPECIALS,
    render_prompt,
    tokenizer_config,
    train_tokenizer,
)

SMOKE = PRESETS["smoke"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(SMOKE, 0)


def test_two_trainings_give_the_same_bytes(tokenizer: Tokenizer) -> None:
    assert train_tokenizer(SMOKE, 0).to_str() == tokenizer.to_str()
    assert train_tokenizer(SMOKE, 1).to_str() != tokenizer.to_str()


def test_size_and_markers(tokenizer: Tokenizer) -> None:
    assert tokenizer.get_vocab_size() == SMOKE.vocab
    assert [tokenizer.token_to_id(marker) for marker in SPECIALS] == list(range(len(SPECIALS)))


def test_digits_stand_alone(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("12 + 345").tokens == ["1", "2", "Ġ+", "Ġ", "3", "4", "5"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    if "<|" not in text:
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("system", ["", "Be brief."])
def test_training_and_template_agree(system: str) -> None:
    turns = [{"role": "system", "content": system}] if system else []
    turns.append({"role": "user", "content": "Hi"})
    template = ChatTemplate(CHAT_TEMPLATE, {})
    assert template.render(turns) == render_prompt("Hi", system)
    assert render_prompt("Hi") == "<|user|>\nHi<|end|>\n<|assistant|>\n"


def test_settings_name_the_end(tokenizer: Tokenizer) -> None:
    settings_ = tokenizer_config(SMOKE)
    assert settings_["eos_token"] == "<|end|>"
    assert settings_["chat_template"] == CHAT_TEMPLATE
