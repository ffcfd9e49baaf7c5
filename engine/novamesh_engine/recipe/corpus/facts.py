"""Questions about the closed world.

Rules: each fact is asked in several ways; a (fact, phrasing) pair is held out by the hash of the
question, so every fact is trained and no question is in both sets. Answers are one full sentence.
"""

from __future__ import annotations

from functools import lru_cache
from random import Random
from typing import Final

from novamesh_engine.recipe.corpus import world
from novamesh_engine.recipe.corpus.grammar import capitalise
from novamesh_engine.recipe.corpus.item import Item
from novamesh_engine.recipe.corpus.words import DAYS

Family = tuple[Item, ...]

_CAPITAL: Final = (
    "What is the capital of {x}?", "What's the capital of {x}?", "Capital of {x}?",
    "Which city is the capital of {x}?", "Name the capital of {x}.", "The capital of {x} is",
    "What city is the capital of {x}?", "{x}: capital?", "Do you know the capital of {x}?",
    "Which city is {x}'s capital?", "What is {x}'s capital?", "What is the capital city of {x}?",
    "Can you name the capital of {x}?", "I want to know the capital of {x}.",
)  # fmt: skip
_COUNTRY: Final = (
    "Which country has the capital {x}?", "{x} is the capital of which country?",
    "What country is {x} the capital of?", "Of which country is {x} the capital?",
    "{x} is the capital of", "Whose capital is {x}?", "Name the country whose capital is {x}.",
    "The city of {x} is the capital of what country?",
)  # fmt: skip
_SYMBOL: Final = (
    "What is the symbol for {x}?", "What is the chemical symbol of {x}?", "Symbol of {x}?",
    "Which symbol does {x} have?", "What's the symbol of the element {x}?",
    "Give the chemical symbol for {x}.", "How is {x} written in chemistry?",
)  # fmt: skip
_ELEMENT: Final = (
    "Which element has the symbol {x}?", "What element is {x}?",
    "{x} is the symbol of which element?",
    "What does {x} stand for in chemistry?", "Name the element with the symbol {x}.",
    "Which chemical element is written {x}?",
)  # fmt: skip
_NUMBER: Final = (
    "What is the atomic number of {x}?", "Which atomic number does {x} have?",
    "Atomic number of {x}?", "What's the atomic number of {x}?", "Give the atomic number of {x}.",
    "How many protons does {x} have?",
)  # fmt: skip
_WHICH: Final = (
    "What is the {x}?", "What's the {x}?", "Name the {x}.", "Do you know the {x}?", "The {x} is",
    "Which one is the {x}?", "Tell me what the {x} is.", "Can you name the {x}?",
    "What do you call the {x}?",
)  # fmt: skip
_OPPOSITE: Final = (
    "What is the opposite of {x}?", "Opposite of {x}?", "What's the opposite of {x}?",
    "Give the opposite of {x}.", "Which word is the opposite of {x}?", "The opposite of {x} is",
    "Name the opposite of {x}.",
)  # fmt: skip
_YOUNG: Final = (
    "What is a young {x} called?", "What is a baby {x} called?", "How do you call a young {x}?",
    "What do you call a baby {x}?", "What is the name for a young {x}?", "A young {x} is called",
)  # fmt: skip
_CONTINENT: Final = (
    "On which continent is {x}?", "Which continent is {x} in?", "What continent is {x} on?",
    "In which continent is {x}?", "Where is {x}?", "{x} is on which continent?",
    "Name the continent of {x}.",
)  # fmt: skip
_UNIT: Final = (
    "How many {ys} are in {a} {x}?", "How many {ys} are there in {a} {x}?",
    "{A} {x} has how many {ys}?",
    "How many {ys} does {a} {x} have?", "How many {ys} make {a} {x}?", "How many {ys} in {a} {x}?",
    "What is {a} {x} in {ys}?",
)  # fmt: skip
_COUNT: Final = (
    "How many {x}?", "Do you know how many {x}?", "Tell me how many {x}.", "Say how many {x}.",
    "I want to know how many {x}.", "Can you say how many {x}?",
)  # fmt: skip
_AFTER: Final = (
    "Which {y} comes after {x}?", "What {y} comes after {x}?", "What is the {y} after {x}?",
    "Which {y} follows {x}?", "What comes after {x}?", "After {x} comes which {y}?",
    "Name the {y} after {x}.", "What's the next {y} after {x}?",
)  # fmt: skip
_BEFORE: Final = (
    "Which {y} comes before {x}?", "What {y} comes before {x}?", "What is the {y} before {x}?",
    "What comes before {x}?", "Before {x} comes which {y}?", "Name the {y} before {x}.",
    "Which {y} is just before {x}?",
)  # fmt: skip
_MONTH_DAYS: Final = (
    "How many days does {x} have?", "How many days are in {x}?", "How many days are there in {x}?",
    "{x} has how many days?", "How long is {x} in days?", "Number of days in {x}?",
)  # fmt: skip
_ORDER: Final = (
    "Which month is the {x} month?", "What is the {x} month of the year?", "Name the {x} month.",
    "Which is the {x} month of the year?", "What's the {x} month?",
)  # fmt: skip
_PLANET: Final = (
    "Which planet is the {x} from the Sun?", "What is the {x} planet from the Sun?",
    "Name the {x} planet from the Sun.", "What's the {x} planet?", "Which is the {x} planet?",
)  # fmt: skip
_LEGS: Final = (
    "How many legs does {a} {x} have?", "How many legs has {a} {x}?", "{A} {x} has how many legs?",
    "Number of legs of {a} {x}?", "Do you know how many legs {a} {x} has?",
)  # fmt: skip
_SIDES: Final = (
    "How many sides does {a} {x} have?", "How many sides has {a} {x}?",
    "{A} {x} has how many sides?",
    "Number of sides of {a} {x}?", "How many corners does {a} {x} have?",
)  # fmt: skip


def _article(noun: str) -> str:
    return "an" if noun[0] in "aeiou" or noun == "hour" else "a"


def _ask(phrasings: tuple[str, ...], answer: str, **slots: str) -> Family:
    slots |= {"A": capitalise(slots.get("a", ""))}
    return tuple(
        Item("facts", capitalise(phrasing.format(**slots)), capitalise(answer))
        for phrasing in phrasings
    )


def _geography() -> list[Family]:
    families = [
        _ask(_CAPITAL, f"The capital of {place} is {city}.", x=place)
        for place, city in world.CAPITALS
    ]
    families += [
        _ask(_COUNTRY, f"{city} is the capital of {place}.", x=city)
        for place, city in world.CAPITALS
    ]
    families += [_ask(_CONTINENT, f"{x} is in {where}.", x=x) for x, where in world.CONTINENTS]
    return families


def _chemistry() -> list[Family]:
    families: list[Family] = []
    for number, entry in enumerate((*world.ELEMENTS, *world.HEAVY_ELEMENTS), start=1):
        name, symbol = entry.split(":")
        lower = name.lower()
        families.append(_ask(_SYMBOL, f"The symbol for {lower} is {symbol}.", x=lower))
        families.append(_ask(_ELEMENT, f"{symbol} is the symbol for {lower}.", x=symbol))
        if number <= len(world.ELEMENTS):
            answer = f"The atomic number of {lower} is {number}."
            families.append(_ask(_NUMBER, answer, x=lower))
    return families


def _sequence(names: tuple[str, ...], kind: str, wraps: bool) -> list[Family]:
    families = []
    for place, name in enumerate(names):
        if wraps or place + 1 < len(names):
            after = names[(place + 1) % len(names)]
            families.append(_ask(_AFTER, f"{after} comes after {name}.", x=name, y=kind))
        if wraps or place:
            families.append(
                _ask(_BEFORE, f"{names[place - 1]} comes before {name}.", x=name, y=kind)
            )
    return families


def _calendar() -> list[Family]:
    families = _sequence(DAYS, "day", wraps=True) + _sequence(world.MONTHS, "month", wraps=True)
    families += _sequence(tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ"), "letter", wraps=False)
    for month, days, order in zip(world.MONTHS, world.MONTH_DAYS, world.ORDINALS, strict=True):
        families.append(_ask(_MONTH_DAYS, f"{month} has {days} days.", x=month))
        families.append(_ask(_ORDER, f"The {order} month is {month}.", x=order))
    for order, planet in zip(world.ORDINALS, world.PLANETS, strict=False):
        families.append(_ask(_PLANET, f"The {order} planet from the Sun is {planet}.", x=order))
    return families


def _measures() -> list[Family]:
    families = []
    for whole, part, count in world.UNITS:
        parts = world.PLURAL_UNITS.get(part, part + "s")
        article = _article(whole)
        answer = f"There are {count} {parts} in {article} {whole}."
        families.append(_ask(_UNIT, answer, x=whole, ys=parts, a=article))
    for phrasings, rows, noun in ((_LEGS, world.LEGS, "legs"), (_SIDES, world.SIDES, "sides")):
        for x, count in rows:
            answer = f"{_article(x)} {x} has {count} {noun}."
            families.append(_ask(phrasings, answer, x=x, a=_article(x)))
    return families


def _words() -> list[Family]:
    families = [_ask(_WHICH, f"The {x} is {y}.", x=x) for x, y in world.SINGLES]
    families += [_ask(_COUNT, answer, x=x) for x, answer in world.COUNTS]
    for one, other in world.OPPOSITES:
        families.append(_ask(_OPPOSITE, f"The opposite of {one} is {other}.", x=one))
        if one not in ("heavy",) and other not in ("light",):
            families.append(_ask(_OPPOSITE, f"The opposite of {other} is {one}.", x=other))
    return families + [
        _ask(_YOUNG, f"A young {x} is called {_article(y)} {y}.", x=x) for x, y in world.YOUNG
    ]


@lru_cache(maxsize=1)
def fact_families() -> tuple[Family, ...]:
    """Every fact with all the ways it is asked."""
    return (*_geography(), *_chemistry(), *_calendar(), *_measures(), *_words())


def make_fact(rng: Random) -> Item:
    """One question about the closed world."""
    return rng.choice(rng.choice(fact_families()))
