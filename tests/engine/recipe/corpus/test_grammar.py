"""Filling templates: tense, capitals."""

from __future__ import annotations

from random import Random

from novamesh_engine.recipe.corpus.grammar import (
    capitalise,
    cast,
    inflect,
    lower_first,
    start_sentences,
)
from novamesh_engine.recipe.corpus.split import Axes


def test_tense() -> None:
    assert inflect("{N} <gives|gave> {n} <away|off>", past=False) == "{N} gives {n} away"
    assert inflect("{N} <gives|gave> {n} <away|off>", past=True) == "{N} gave {n} off"


def test_capitals() -> None:
    assert capitalise("her SHOP") == "Her SHOP"
    assert lower_first("How") == "how"
    assert start_sentences("he eats. then he rests? good! 3 left") == (
        "He eats. Then he rests? Good! 3 left"
    )


def test_a_cast_fills_every_slot() -> None:
    slots = cast(Random(1), Axes())
    assert slots["himself"] in {"herself", "himself"}
    assert "{" not in "".join(slots.values())
