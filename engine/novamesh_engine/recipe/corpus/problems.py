"""Word problems: chains and situations in a fixed proportion.

Rules: the number of steps is asked for, not drawn; the same rng and axes give the same problem.
"""

from __future__ import annotations

from random import Random
from typing import Final

from novamesh_engine.recipe.corpus.chains import make_chain
from novamesh_engine.recipe.corpus.grammar import cast, start_sentences
from novamesh_engine.recipe.corpus.item import Item
from novamesh_engine.recipe.corpus.situations import SITUATIONS, Situation
from novamesh_engine.recipe.corpus.split import Axes
from novamesh_engine.recipe.corpus.steps import work_out

STEPS_MAX: Final = 3
_CHAIN_SHARE: Final = 0.6
_BY_STEPS: Final = {
    count: tuple(s for s in SITUATIONS if len(s.plan) == count) for count in (1, 2, 3)
}


def _has_pair(situation: Situation) -> bool:
    return any(operator in "+-" for _, operator, _ in situation.plan)


def _make_situation(rng: Random, count: int, axes: Axes) -> tuple[str, str]:
    situation = rng.choice(_BY_STEPS[count])
    while axes.pairs and not _has_pair(situation):
        situation = rng.choice(_BY_STEPS[count])
    work = work_out(rng, situation.plan, axes)
    numbers = {letter: str(value) for letter, value in work.operands.items()}
    text = situation.texts.pick(rng, axes).format(**{**numbers, **cast(rng, axes)})
    return start_sentences(text), work.answer()


def make_problem(rng: Random, count: int, axes: Axes) -> Item:
    """A word problem of `count` worked steps (1 to 3)."""
    make = make_chain if rng.random() < _CHAIN_SHARE else _make_situation
    prompt, answer = make(rng, count, axes)
    return Item(f"problems-{count}", prompt, answer)
