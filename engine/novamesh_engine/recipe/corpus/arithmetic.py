"""Bare sums in one to three steps, as an expression or in words.

Rules: an expression is worked as usual, products before sums; numbers and answers come from
`steps`.
"""

from __future__ import annotations

from random import Random
from typing import Final

from novamesh_engine.recipe.corpus.item import Item
from novamesh_engine.recipe.corpus.split import Axes, Bank, divide
from novamesh_engine.recipe.corpus.steps import Plan, Work, work_out

_EXPRESSION: Final = divide(
    "{e}", "{e} =", "{e} = ?", "What is {e}?", "Compute {e}.", "Calculate {e}", "How much is {e}?",
    "{e} equals", "Work out {e}.", "What does {e} equal?", "What's {e}?", "Find {e}.",
    "Give me the result of {e}.", "What is the result of {e}?", "Evaluate {e}", "Can you do {e}?",
    "What do you get for {e}?", "I need {e}.", "Sum: {e}", "Answer this: {e}",
)  # fmt: skip
_WORDS: Final[dict[str, Bank]] = {
    "+": divide(
        "What is {a} plus {b}?", "Add {a} and {b}.", "What is the sum of {a} and {b}?",
        "How much is {a} plus {b}?", "{a} plus {b}", "Add {b} to {a}.",
        "What is {b} more than {a}?",
        "{a} and {b} together make what?", "Calculate {a} plus {b}.", "Increase {a} by {b}.",
        "What do you get when you add {a} and {b}?", "Sum of {a} and {b}",
    ),
    "-": divide(
        "What is {a} minus {b}?", "Subtract {b} from {a}.", "How much is {a} minus {b}?",
        "What is the difference between {a} and {b}?", "{a} minus {b}", "Take {b} away from {a}.",
        "What is {b} less than {a}?", "Take {b} from {a}.", "Calculate {a} minus {b}.",
        "Decrease {a} by {b}.", "What do you get when you subtract {b} from {a}?",
        "What is left of {a} when {b} is taken away?",
    ),
    "*": divide(
        "What is {a} times {b}?", "Multiply {a} by {b}.", "What is the product of {a} and {b}?",
        "How much is {a} times {b}?", "{a} times {b}", "Multiply {a} and {b}.",
        "Calculate {a} times {b}.", "What is {a} multiplied by {b}?", "{a} multiplied by {b}",
    ),
    "/": divide(
        "What is {a} divided by {b}?", "Divide {a} by {b}.", "How much is {a} divided by {b}?",
        "{a} divided by {b}", "How many times does {b} go into {a}?",
        "Calculate {a} divided by {b}.",
        "Split {a} into {b} equal parts. How big is one part?", "What is {a} shared by {b}?",
    ),
}  # fmt: skip
_SIGNS: Final = {"*": ("*", "x", "×", "*"), "/": ("/", "÷", "/"), "+": ("+",), "-": ("-",)}  # noqa: RUF001
_MIXED: Final[tuple[tuple[str, Plan], ...]] = (
    ("{k} {t} {m} + {a}", (("k", "*", "m"), ("_1", "+", "a"))),
    ("{k} {t} {m} - {a}", (("k", "*", "m"), ("_1", "-", "a"))),
    ("{a} + {k} {t} {m}", (("k", "*", "m"), ("a", "+", "_1"))),
    ("{a} - {k} {t} {m}", (("k", "*", "m"), ("a", "-", "_1"))),
)
"""Expressions in which the product comes first, wherever it stands."""
_MIXED_SHARE: Final = 0.08
_LEVELS: Final = {1: ("+", "-", "+", "-", "*", "/"), 2: ("+", "-"), 3: ("+", "-")}


def _plan(rng: Random, count: int, axes: Axes) -> Plan:
    plan = []
    for number in range(count):
        operator = rng.choice("+-" if axes.pairs else _LEVELS[count])
        left = f"_{number}" if number else "a"
        right = "bcd"[number] if operator in "+-" else rng.choice("km")
        if operator == "*" and rng.random() < 0.5:
            left = "m" if right == "k" else "k"
        plan.append((left, operator, right))
    return tuple(plan)


def _expression(rng: Random, work: Work) -> str:
    tight = rng.random() < 0.15
    text = str(work.steps[0].left)
    for step in work.steps:
        sign = rng.choice(_SIGNS[step.operator])
        text += f"{sign}{step.right}" if tight else f" {sign} {step.right}"
    return text


def _make_mixed(rng: Random, axes: Axes) -> Item:
    form, plan = rng.choice(_MIXED)
    work = work_out(rng, plan, axes)
    known = {letter: str(value) for letter, value in work.operands.items()}
    expression = form.format(t=rng.choice(_SIGNS["*"]), **known)
    return Item("arithmetic", _EXPRESSION.pick(rng, axes).format(e=expression), work.answer())


def make_sum(rng: Random, axes: Axes) -> Item:
    """A bare calculation; seven in ten have one step."""
    if rng.random() < _MIXED_SHARE:
        return _make_mixed(rng, axes)
    count = rng.choices((1, 2, 3), (7, 2, 1))[0]
    work = work_out(rng, _plan(rng, count, axes), axes)
    first = work.steps[0]
    if count == 1 and rng.random() < 0.4:
        text = _WORDS[first.operator].pick(rng, axes).format(a=first.left, b=first.right)
    else:
        text = _EXPRESSION.pick(rng, axes).format(e=_expression(rng, work))
    return Item("arithmetic", text, work.answer())
