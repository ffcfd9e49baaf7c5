"""What lies outside is answered honestly and never with a trained fact."""

from __future__ import annotations

from random import Random

from novamesh_engine.recipe.corpus.facts import fact_families
from novamesh_engine.recipe.corpus.split import Axes, normalise
from novamesh_engine.recipe.corpus.unknown import REPLY, make_unknown


def test_no_unknown_question_has_a_known_answer() -> None:
    known = {normalise(item.prompt) for family in fact_families() for item in family}
    rng = Random(2)
    for _ in range(4000):
        item = make_unknown(rng, Axes())
        assert item.answer == REPLY
        assert normalise(item.prompt) not in known, item.prompt
