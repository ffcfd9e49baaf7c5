"""What is trained and what is held out, decided by stable hashes.

Rules: an item, an operand pair, a noun or a template is on one side for ever, whatever the seed;
both sides can be told apart without keeping a list of either. Holds no randomness and no text.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from random import Random
from typing import Final

HELD_ITEMS_PERMILLE: Final = 80
HELD_PAIRS_PERMILLE: Final = 60
HELD_WORDS_PERMILLE: Final = 200
BANK_SHARE: Final = 6
"""One template in this many is held out."""

POLITE: Final = (
    "please help me with this", "please solve this", "please answer", "can you help me",
    "can you solve this", "can you tell me", "could you tell me", "i have a question",
    "here is a question", "here is a problem", "quick question", "question", "problem",
    "solve this", "solve", "tell me", "hi", "hello", "hey", "help me", "ok", "so", "now",
    "please", "thanks", "thank you", "show your steps", "show your work", "think step by step",
    "step by step", "answer briefly", "just the answer", "i need to know", "do you know",
)  # fmt: skip
_POLITE = re.compile("^(?:(?:" + "|".join(sorted(POLITE, key=len, reverse=True)) + r")\b ?)+")
_POLITE_END = re.compile("(?: ?\\b(?:" + "|".join(sorted(POLITE, key=len, reverse=True)) + "))+$")
_SIGNS: Final = str.maketrans("×÷", "*/")  # noqa: RUF001
_NOT_WORD = re.compile(r"[^a-z0-9+*/<>=-]+")


def bucket(text: str) -> int:
    """A number in 0…999 that depends on the text alone."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % 1000


def normalise(prompt: str) -> str:
    """The prompt without casing, punctuation and polite padding: what makes two items the same."""
    plain = " ".join(_NOT_WORD.sub(" ", prompt.lower().translate(_SIGNS)).split())
    bare = _POLITE_END.sub("", _POLITE.sub("", plain)).strip()
    return bare or plain


def is_held_item(prompt: str) -> bool:
    """Whether the prompt, normalised, belongs to the evaluation."""
    return bucket("item:" + normalise(prompt)) < HELD_ITEMS_PERMILLE


def is_held_pair(operator: str, left: int, right: int) -> bool:
    """Whether an addition or subtraction of these operands is never trained.

    Sums of single digits, products and quotients are tables that are trained in full.
    """
    if operator not in "+-" or (left < 10 and right < 10):
        return False
    if operator == "+" and left > right:
        left, right = right, left
    return bucket(f"pair:{left}{operator}{right}") < HELD_PAIRS_PERMILLE


def is_held_word(word: str) -> bool:
    """Whether a name or an object is never trained."""
    return bucket("word:" + word.lower()) < HELD_WORDS_PERMILLE


@dataclass(frozen=True, slots=True)
class Axes:
    """Which parts of an item come from the held-out side."""

    nouns: bool = False
    pairs: bool = False
    templates: bool = False


@dataclass(frozen=True, slots=True)
class Bank:
    """Phrasings of one thing, divided for ever into trained and held-out ones."""

    trained: tuple[str, ...]
    held: tuple[str, ...]

    def pick(self, rng: Random, axes: Axes) -> str:
        """One phrasing from the side that the axes ask for."""
        return rng.choice(self.held if axes.templates and self.held else self.trained)


def divide(*phrasings: str) -> Bank:
    """Split phrasings by the order of their hashes; banks under six hold nothing out."""
    ranked = sorted(set(phrasings), key=lambda text: hashlib.sha256(text.encode()).digest())
    held = len(ranked) // BANK_SHARE
    return Bank(tuple(ranked[held:]), tuple(ranked[:held]))
