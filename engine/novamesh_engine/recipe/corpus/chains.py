"""Word problems about one person whose number of things changes one to three times.

Rules: the plan decides the operations, `steps` draws the numbers, `phrases` says it; the pronoun
and the tense are the same throughout an item.
"""

from __future__ import annotations

from random import Random
from typing import Final

from novamesh_engine.recipe.corpus import phrases
from novamesh_engine.recipe.corpus.grammar import (
    capitalise,
    cast,
    inflect,
    lower_first,
    start_sentences,
)
from novamesh_engine.recipe.corpus.split import Axes, Bank
from novamesh_engine.recipe.corpus.steps import Plan, Step, Work, work_out

_EVENT_SHARE: Final = 0.35
_SUMS_SHARE: Final = 0.86
_OPERANDS: Final = "bcd"
_ME: Final = {"N": "I", "he": "I", "He": "I", "him": "me", "his": "my", "His": "My",
              "himself": "myself"}  # fmt: skip
_ME_SHARE: Final = 0.1
_MY_GRAMMAR: Final = (
    (" does I ", " do I "),
    ("I has", "I have"),
    (" has I ", " have I "),
    ("I's", "my"),
    ("I ends", "I end"),
    ("I wants", "I want"),
)


def _plan(rng: Random, count: int, axes: Axes) -> Plan:
    plan: list[tuple[str, str, str]] = []
    for number in range(count):
        left = f"_{number}" if number else "a"
        roll = rng.random() * (_SUMS_SHARE if axes.pairs else 1.0)
        if roll < 0.42:
            plan.append((left, "+", _OPERANDS[number]))
        elif roll < _SUMS_SHARE:
            plan.append((left, "-", _OPERANDS[number]))
        elif roll < 0.90:
            plan.append((left, "*", "2"))
        elif roll < 0.94:
            plan.append((left, "/", "2"))
        else:
            plan.append((left, "*" if roll < 0.97 else "/", "k" if number % 2 else "m"))
    return tuple(plan)


def _clause_bank(step: Step, rng: Random) -> Bank:
    if step.operator == "+":
        return phrases.GAIN
    if step.operator == "-":
        return phrases.LOSE
    if step.operator == "*":
        return phrases.DOUBLE if step.right == 2 and rng.random() < 0.8 else phrases.TIMES
    return phrases.HALVE if step.right == 2 and rng.random() < 0.8 else phrases.SHARE


class _Teller:
    """Tells one chain; keeps the cast, the tense and the axes of the item."""

    def __init__(self, rng: Random, axes: Axes) -> None:
        self._rng = rng
        self._axes = axes
        self._mine = rng.random() < _ME_SHARE
        self._past = self._mine or rng.random() < 0.4
        self._slots = cast(rng, axes)
        if self._mine:
            self._slots |= _ME | {"kin": phrases.KIN[0].format(his="my")}

    def _fill(self, template: str, **more: str) -> str:
        return inflect(template, self._past).format(**{**self._slots, **more})

    def _pick(self, bank: Bank) -> str:
        return bank.pick(self._rng, self._axes)

    def _clause(self, step: Step) -> str:
        text = self._fill(self._pick(_clause_bank(step, self._rng)), n=str(step.right))
        return text.removeprefix("then ") if text.startswith("then ") else text

    def _sentence(self, step: Step) -> str:
        events = {"+": phrases.GAIN_EVENT, "-": phrases.LOSE_EVENT}.get(step.operator)
        if events and self._rng.random() < _EVENT_SHARE:
            body = self._fill(self._pick(events), n=str(step.right))
        else:
            subject = "{he}" if self._rng.random() < 0.7 else "{N}"
            body = self._fill(subject) + " " + self._clause(step)
        return capitalise(self._fill(self._pick(phrases.LINK)) + body + ".")

    def _clauses(self, steps: tuple[Step, ...]) -> str:
        parts = [self._clause(step) for step in steps]
        if len(parts) == 3 and self._rng.random() < 0.5:
            return f"{parts[0]}, {parts[1]} and {parts[2]}"
        text = parts[0]
        for part in parts[1:]:
            text += self._fill(self._pick(phrases.JOIN)) + part
        return text

    def _question(self, last: Step) -> dict[str, str]:
        falls = last.operator == "-" and self._rng.random() < 0.6
        stem = self._fill(self._pick(phrases.ASK_LEFT if falls else phrases.ASK))
        ask = stem + "?"
        if self._rng.random() < 0.15:
            ask = self._fill(self._pick(phrases.TELL))
        return {"ask": ask, "qask": stem, "lask": lower_first(stem) + "?"}

    def tell(self, work: Work) -> str:
        """The problem as text."""
        text = self._tell(work)
        for wrong, right in _MY_GRAMMAR if self._mine else ():
            text = text.replace(wrong, right)
        return start_sentences(text)

    def _tell(self, work: Work) -> str:
        steps = work.steps
        slots = {"a": str(steps[0].left)}
        start = self._fill(self._pick(phrases.START), **slots)
        slots |= {"start": start} | self._question(steps[-1])
        roll = self._rng.random()
        if roll < 0.10:
            notes = ", ".join(
                self._fill(self._pick(phrases.NOTES[s.operator]), n=str(s.right)) for s in steps
            )
            slots |= {"notes": notes, "Notes": capitalise(notes)}
            return self._fill(self._pick(phrases.FRAME_NOTE), **slots)
        if roll < 0.50:
            slots["vps"] = self._clauses(steps)
            return self._fill(self._pick(phrases.FRAME_LIST), **slots)
        slots["subs"] = " ".join(map(self._sentence, steps))
        return self._fill(self._pick(phrases.FRAME_SENTENCES), **slots)


def make_chain(rng: Random, count: int, axes: Axes) -> tuple[str, str]:
    """A story of `count` steps and its worked answer."""
    work = work_out(rng, _plan(rng, count, axes), axes)
    return _Teller(rng, axes).tell(work), work.answer()
