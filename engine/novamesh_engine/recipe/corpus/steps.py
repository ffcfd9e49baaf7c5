"""Worked steps: operands that stay in range, and the text of the answer.

Rules: whole numbers from 0 to 300, no negative result, division only where it comes out even; an
addition or subtraction is on the side of the split that the axes ask for. The answer is computed
here and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Final

from novamesh_engine.recipe.corpus.split import Axes, is_held_pair

VALUE_MAX: Final = 300
_TRIES: Final = 80
_FACTORS: Final = frozenset("km")

Plan = tuple[tuple[str, str, str], ...]
"""Steps as (left, operator, right): letters are operands to draw (k, m small factors), `2` is the
number two, `_1` is the result of step one."""


@dataclass(frozen=True, slots=True)
class Step:
    """One line of work: left operator right = result."""

    left: int
    operator: str
    right: int
    result: int

    def __str__(self) -> str:
        return f"{self.left} {self.operator} {self.right} = {self.result}."


@dataclass(frozen=True, slots=True)
class Work:
    """The operands that were drawn, by letter, and the steps that follow from them."""

    operands: dict[str, int]
    steps: tuple[Step, ...]

    def answer(self) -> str:
        """`12 + 25 = 37. 37 - 9 = 28. Answer: 28`."""
        return " ".join(map(str, self.steps)) + f" Answer: {self.steps[-1].result}"


def compute(left: int, operator: str, right: int) -> int | None:
    """The exact result, or None where it leaves the range or is not whole."""
    if operator == "+":
        result = left + right
    elif operator == "-":
        result = left - right
    elif operator == "*":
        result = left * right
    elif right == 0 or left % right:
        return None
    else:
        result = left // right
    return result if 0 <= result <= VALUE_MAX else None


def _draw(rng: Random, letter: str) -> int:
    if letter in _FACTORS:
        return rng.choice((2, 3, 4, 5, 6, 7, 8, 9, 10, 2, 3, 4, 5))
    roll = rng.random()
    if roll < 0.15:
        return rng.randint(2, 12)
    return rng.randint(10, 99) if roll < 0.96 else rng.randint(100, 250)


def _draw_right(rng: Random, letter: str, operator: str, left: int) -> int:
    """The right operand; subtractions lean to small results, which are the hard ones."""
    if operator == "-" and letter not in _FACTORS and left > 3:
        if rng.random() < 0.3:
            return max(1, left - rng.randint(0, 12))
        if left < 100:
            return rng.randint(1, left)
    return _draw(rng, letter)


def _in_tables(left: int, operator: str, right: int) -> bool:
    """Products and quotients that are trained: up to 12 * 12, and two digits by 2 to 5."""
    if operator == "/":
        left = left // right
    small, large = sorted((left, right))
    return small >= 1 and (large <= 12 or (small <= 5 and large <= 60))


def _make_step(
    rng: Random, raw: tuple[str, str, str], known: dict[str, int], axes: Axes
) -> Step | None:
    left_name, operator, right_name = raw
    for _ in range(_TRIES):
        left = known[left_name] if left_name in known else _draw(rng, left_name)
        if right_name in known:
            right = known[right_name]
        else:
            right = _draw_right(rng, right_name, operator, left)
        result = compute(left, operator, right)
        if result is None or (operator in "*/" and not _in_tables(left, operator, right)):
            continue
        if operator in "+-" and is_held_pair(operator, left, right) is not axes.pairs:
            continue
        known |= {left_name: left, right_name: right}
        return Step(left, operator, right, result)
    return None


def work_out(rng: Random, plan: Plan, axes: Axes) -> Work:
    """Draw operands for the plan until every step is in range and on the right side."""
    while True:
        known: dict[str, int] = {"2": 2, "3": 3}
        steps: list[Step] = []
        for number, raw in enumerate(plan, start=1):
            step = _make_step(rng, raw, known, axes)
            if step is None:
                break
            known[f"_{number}"] = step.result
            steps.append(step)
        else:
            return Work(known, tuple(steps))
