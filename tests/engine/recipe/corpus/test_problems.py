"""Word problems and sums: whatever is drawn, a second solver agrees with the answer."""

from __future__ import annotations

import re
from random import Random

import pytest

from novamesh_engine.recipe.corpus.arithmetic import make_sum
from novamesh_engine.recipe.corpus.problems import STEPS_MAX, make_problem
from novamesh_engine.recipe.corpus.situations import SITUATIONS
from novamesh_engine.recipe.corpus.split import Axes

STEP = re.compile(r"(\d+) ([+*/-]) (\d+) = (\d+)\.")
ALL_AXES = [
    Axes(),
    Axes(nouns=True),
    Axes(pairs=True),
    Axes(templates=True),
    Axes(True, True, True),
]


def solve(answer: str) -> list[tuple[int, ...]]:
    """Check a worked answer by eye of another solver; returns the steps' numbers."""
    steps = STEP.findall(answer)
    for left, operator, right, result in steps:
        assert eval(f"{left} {operator} {right}") == int(result), answer
    assert answer == " ".join(
        [f"{left} {op} {right} = {result}." for left, op, right, result in steps]
        + [f"Answer: {steps[-1][3]}"]
    )
    return [(int(left), int(right), int(result)) for left, _, right, result in steps]


@pytest.mark.parametrize("axes", ALL_AXES)
@pytest.mark.parametrize("count", range(1, STEPS_MAX + 1))
def test_answers_are_right_and_follow_from_the_text(count: int, axes: Axes) -> None:
    rng = Random(f"{count}{axes}")
    for _ in range(120):
        item = make_problem(rng, count, axes)
        numbers = [int(number) for number in re.findall(r"\d+", item.prompt)]
        known = {*numbers, 2}  # "half" and "double"
        steps = solve(item.answer)
        assert len(steps) == count
        for left, right, result in steps:
            assert {left, right} <= known, (item.prompt, item.answer)
            known.add(result)
        assert not re.search(r"[{}<>|]", item.prompt), item.prompt


@pytest.mark.parametrize("axes", [Axes(), Axes(pairs=True), Axes(templates=True)])
def test_sums_are_right(axes: Axes) -> None:
    rng = Random(11)
    for _ in range(300):
        item = make_sum(rng, axes)
        text = item.prompt.replace("÷", "/").replace("×", "*")  # noqa: RUF001
        steps = solve(item.answer)
        assert {str(steps[0][0]), str(steps[0][1])} <= set(re.findall(r"\d+", text))


def test_the_same_seed_tells_the_same_problems() -> None:
    def told() -> list[str]:
        rng = Random(12)
        return [make_problem(rng, 1 + number % 3, Axes()).prompt for number in range(50)]

    assert told() == told()
    assert len(set(told())) == 50


def test_every_step_count_has_situations_with_held_out_texts() -> None:
    for count in (1, 2, 3):
        chosen = [situation for situation in SITUATIONS if len(situation.plan) == count]
        assert len(chosen) >= 3
        assert all(situation.texts.held for situation in chosen)


def test_first_person_is_grammatical() -> None:
    rng = Random(13)
    prompts = [make_problem(rng, 2, Axes()).prompt for _ in range(3000)]
    mine = [prompt for prompt in prompts if re.search(r"\bI\b", prompt)]
    assert len(mine) > 60
    assert not [p for p in mine if re.search(r"\bdoes I\b|\bI has\b|\bhas I\b|\bI's", p)]
