"""Bare sums: products before sums, and the same sum from the same seed. Answers: test_problems."""

from __future__ import annotations

import re
from random import Random

from novamesh_engine.recipe.corpus.arithmetic import make_sum
from novamesh_engine.recipe.corpus.split import Axes

EXPRESSION = re.compile(r"\d+(?: ?[-+*/x×÷] ?\d+)+")  # noqa: RUF001
SIGNS = str.maketrans("x×÷", "**/")  # noqa: RUF001


def test_an_expression_is_worked_as_python_works_it() -> None:
    rng, worked = Random(5), 0
    for _ in range(500):
        item = make_sum(rng, Axes())
        assert item.row == "arithmetic"
        found = EXPRESSION.search(item.prompt)
        if found:
            expected = eval(found[0].translate(SIGNS))
            assert item.answer.endswith(f"Answer: {expected:g}"), item
            worked += 1
    assert worked > 200


def test_a_seed_decides_the_sum() -> None:
    assert make_sum(Random(9), Axes()) == make_sum(Random(9), Axes())
