"""The split: stable, untouched by noise, and never both sides at once."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from novamesh_engine.recipe.corpus.noise import add_noise
from novamesh_engine.recipe.corpus.split import (
    Axes,
    bucket,
    divide,
    is_held_item,
    is_held_pair,
    is_held_word,
    normalise,
)


def test_buckets_never_change() -> None:
    assert [bucket(text) for text in ("", "a", "pair:12+25")] == [876, 343, 282]


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("What is 12 + 25?", "what is 12 + 25"),
        ("What is 12 + 25?", "Please help me with this: What is 12 + 25? Thanks!"),
        ("12 × 4", "12 * 4"),  # noqa: RUF001
        ("Solve this: Ada has 3 eggs.\nShe eats 2.", "ada has 3 eggs. she eats 2"),
    ],
)
def test_noise_does_not_make_another_item(left: str, right: str) -> None:
    assert normalise(left) == normalise(right)


@pytest.mark.parametrize(
    ("left", "right"), [("12 + 25", "12 - 25"), ("3 * 4", "3 / 4"), ("hi", "hello"), ("a", "b")]
)
def test_different_items_stay_different(left: str, right: str) -> None:
    assert normalise(left) != normalise(right)


@given(st.integers(0, 2**32), st.sampled_from(["What is 3 + 4?", "Capital of France?"]))
def test_noise_never_moves_an_item(seed: int, prompt: str) -> None:
    noisy = add_noise(Random(seed), prompt)
    assert normalise(noisy) == normalise(prompt)
    assert is_held_item(noisy) == is_held_item(prompt)


@given(st.integers(0, 300), st.integers(0, 300))
def test_a_sum_and_its_mirror_are_on_one_side(left: int, right: int) -> None:
    assert is_held_pair("+", left, right) == is_held_pair("+", right, left)
    assert not is_held_pair("*", left, right)
    assert not is_held_pair("-", left % 10, right % 10)


def test_about_the_stated_shares_are_held_out() -> None:
    pairs = [is_held_pair("-", left, right) for left in range(50, 150) for right in range(50)]
    assert 0.04 < sum(pairs) / len(pairs) < 0.08
    words = [is_held_word(f"word{number}") for number in range(2000)]
    assert 0.17 < sum(words) / len(words) < 0.23


def test_a_bank_gives_each_side_its_own_phrasings() -> None:
    bank = divide(*(f"phrase {number}" for number in range(30)))
    assert len(bank.held) == 5
    assert not set(bank.held) & set(bank.trained)
    rng = Random(1)
    assert {bank.pick(rng, Axes(templates=True)) for _ in range(200)} == set(bank.held)
    assert {bank.pick(rng, Axes()) for _ in range(500)} == set(bank.trained)


def test_a_small_bank_holds_nothing_out() -> None:
    bank = divide("one", "two")
    assert bank.pick(Random(1), Axes(templates=True)) in {"one", "two"}
