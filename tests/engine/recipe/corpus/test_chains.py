"""Stories of one person's things: as many steps as asked, and "I" is told in the first person."""

from __future__ import annotations

import re
from random import Random

import pytest

from novamesh_engine.recipe.corpus.chains import make_chain
from novamesh_engine.recipe.corpus.split import Axes


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_story_has_as_many_steps_as_it_was_asked_for(count: int) -> None:
    rng = Random(count)
    for _ in range(200):
        text, answer = make_chain(rng, count, Axes())
        assert answer.count("=") == count
        assert re.search(r"\d", text)
        assert not re.search(r"[{}<>|]", text), text
        assert text[0] == text[0].upper()


def test_my_own_story_keeps_to_the_first_person() -> None:
    rng, mine = Random(4), 0
    for _ in range(600):
        text, _ = make_chain(rng, 2, Axes())
        if re.search(r"\bI\b", text):
            mine += 1
            assert not re.search(r"\bI (has|ends|wants)\b|\bI's\b|\bdoes I\b", text), text
    assert mine > 20
