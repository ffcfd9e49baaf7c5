"""The closed world: no two answers to one question, enough held out, every fact trained."""

from __future__ import annotations

from random import Random

from novamesh_engine.recipe.corpus.facts import fact_families, make_fact
from novamesh_engine.recipe.corpus.split import is_held_item, normalise
from novamesh_engine.recipe.corpus.world import CAPITALS, ELEMENTS


def test_a_question_has_one_answer() -> None:
    answers: dict[str, str] = {}
    for family in fact_families():
        for item in family:
            known = answers.setdefault(normalise(item.prompt), item.answer)
            assert known == item.answer, item


def test_every_fact_is_trained_in_some_phrasing() -> None:
    for family in fact_families():
        assert any(not is_held_item(item.prompt) for item in family), family[0].answer


def test_enough_questions_are_held_out() -> None:
    held = {
        normalise(item.prompt)
        for family in fact_families()
        for item in family
        if is_held_item(item.prompt)
    }
    assert len(held) >= 500


def test_known_facts() -> None:
    items = {item.prompt: item.answer for family in fact_families() for item in family}
    assert items["What is the capital of France?"] == "The capital of France is Paris."
    assert items["What is the symbol for gold?"] == "The symbol for gold is Au."
    assert items["What is the atomic number of oxygen?"] == "The atomic number of oxygen is 8."
    assert items["How many days does February have?"] == "February has 28 days."
    assert items["Which day comes after Sunday?"] == "Monday comes after Sunday."
    assert items["How many legs does a spider have?"] == "A spider has 8 legs."
    assert items["How many minutes are in an hour?"] == "There are 60 minutes in an hour."
    assert items["What is a young owl called?"] == "A young owl is called an owlet."


def test_the_tables_are_whole() -> None:
    assert len(dict(CAPITALS)) == len(CAPITALS) >= 130
    assert ELEMENTS[53] == "Xenon:Xe"


def test_one_seed_one_stream() -> None:
    assert [make_fact(Random(1)) for _ in range(3)] == [make_fact(Random(1)) for _ in range(3)]
