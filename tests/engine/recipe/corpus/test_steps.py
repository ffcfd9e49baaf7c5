"""Worked steps: exact, in range, on the asked side."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from novamesh_engine.recipe.corpus.split import Axes, is_held_pair
from novamesh_engine.recipe.corpus.steps import VALUE_MAX, Plan, Step, Work, compute, work_out

PLANS: list[Plan] = [
    (("a", "+", "b"),),
    (("a", "-", "b"), ("_1", "+", "c")),
    (("a", "+", "b"), ("a", "+", "_1"), ("_2", "-", "c")),
    (("k", "*", "m"), ("a", "-", "_1")),
    (("a", "+", "b"), ("_1", "/", "k")),
    (("a", "*", "2"), ("_1", "/", "2")),
]


@given(st.sampled_from(PLANS), st.integers(0, 2**32), st.booleans())
def test_steps_are_exact_and_on_their_side(plan: Plan, seed: int, held: bool) -> None:
    work = work_out(Random(seed), plan, Axes(pairs=held))
    assert len(work.steps) == len(plan)
    for step in work.steps:
        assert compute(step.left, step.operator, step.right) == step.result
        assert 0 <= step.result <= VALUE_MAX
        if step.operator in "+-":
            assert is_held_pair(step.operator, step.left, step.right) is held


def test_a_result_feeds_the_next_step() -> None:
    work = work_out(Random(7), PLANS[2], Axes())
    first, second, third = work.steps
    assert (second.left, second.right) == (work.operands["a"], first.result)
    assert third.left == second.result


@pytest.mark.parametrize(
    ("left", "operator", "right", "result"),
    [(12, "+", 25, 37), (9, "-", 12, None), (299, "+", 2, None), (36, "/", 5, None),
     (36, "/", 0, None), (36, "/", 4, 9), (30, "*", 10, 300), (31, "*", 10, None)],
)  # fmt: skip
def test_what_leaves_the_range_is_no_step(
    left: int, operator: str, right: int, result: int | None
) -> None:
    assert compute(left, operator, right) == result


def test_the_form_of_an_answer() -> None:
    work = Work({}, (Step(12, "+", 25, 37), Step(37, "-", 9, 28)))
    assert work.answer() == "12 + 25 = 37. 37 - 9 = 28. Answer: 28"
