"""Names and objects: on the asked side, pronounceable, with plurals."""

from __future__ import annotations

from random import Random

import pytest

from novamesh_engine.recipe.corpus.split import Axes, is_held_word
from novamesh_engine.recipe.corpus.words import (
    HE,
    OBJECTS,
    SHE,
    invent_word,
    pick_person,
    pick_thing,
)


@pytest.mark.parametrize("held", [False, True])
def test_words_come_from_the_asked_side(held: bool) -> None:
    rng, axes = Random(3), Axes(nouns=held)
    for _ in range(300):
        assert is_held_word(invent_word(rng, axes)) is held
        assert is_held_word(pick_person(rng, axes).name) is held


def test_two_people_in_one_story_differ() -> None:
    rng = Random(4)
    for _ in range(300):
        first = pick_person(rng, Axes())
        assert pick_person(rng, Axes(), other=first.name).name != first.name


def test_pronouns_fit_together() -> None:
    rng = Random(5)
    for _ in range(200):
        person = pick_person(rng, Axes())
        assert (person.he, person.him, person.his) in {("she", "her", "her"), ("he", "him", "his")}
        assert person.name[0].isupper()


def test_things_have_a_plural() -> None:
    rng = Random(6)
    plurals = [pick_thing(rng, Axes()).plural for _ in range(300)]
    irregular = {"fish", "geese", "sheep", "mice", "leaves"}
    assert all(word.split()[-1].endswith("s") or word.split()[-1] in irregular for word in plurals)
    assert len(set(plurals)) > 150


def test_both_sides_have_real_words() -> None:
    for words in (SHE, HE, OBJECTS):
        held = [word for word in words if is_held_word(word)]
        assert 0.1 < len(held) / len(words) < 0.3
        assert len(set(words)) == len(words)
