"""Fill a template: slots, tense and capitals.

Rules: a template is resolved once per tense and kept in a bounded cache; a slot without a value is
a bug and raises KeyError. Knows no numbers and no banks.
"""

from __future__ import annotations

import re
from functools import lru_cache
from random import Random
from typing import Final

from novamesh_engine.recipe.corpus import phrases
from novamesh_engine.recipe.corpus.split import Axes
from novamesh_engine.recipe.corpus.words import DAYS, HOLDERS, PLACES, pick_person, pick_thing

_TENSE: Final = re.compile(r"<([^|<>]*)\|([^|<>]*)>")
_DOT: Final = re.compile(r"([.!?:] +|^)([a-z])")


@lru_cache(maxsize=8192)
def inflect(template: str, past: bool) -> str:
    """The template with every `<present|past>` resolved."""
    return _TENSE.sub(lambda match: match.group(2 if past else 1), template)


def capitalise(text: str) -> str:
    """The text with its first letter upper case and the others as they are."""
    return text[:1].upper() + text[1:]


def lower_first(text: str) -> str:
    """The text with its first letter lower case, so that it can follow a comma."""
    return text[:1].lower() + text[1:]


def start_sentences(text: str) -> str:
    """Upper case at the beginning of each sentence."""
    return _DOT.sub(lambda match: match.group(1) + match.group(2).upper(), text)


def cast(rng: Random, axes: Axes) -> dict[str, str]:
    """The people, things and places of one story, by slot."""
    person = pick_person(rng, axes)
    other = pick_person(rng, axes, other=person.name)
    third = pick_person(rng, axes, other=person.name)
    thing = pick_thing(rng, axes)
    second = pick_thing(rng, axes)
    slots = {
        "N": person.name, "he": person.he, "him": person.him, "his": person.his,
        "He": capitalise(person.he), "His": capitalise(person.his),
        "himself": "herself" if person.he == "she" else "himself", "M": other.name,
        "L": third.name, "o": thing.plural,
        "o1": thing.singular, "p": second.plural, "p1": second.singular,
        "place": rng.choice(PLACES), "box": rng.choice(HOLDERS), "day": rng.choice(DAYS),
        "day2": rng.choice(DAYS),
    }  # fmt: skip
    slots["kin"] = rng.choice(phrases.KIN).format(**slots)
    return slots
