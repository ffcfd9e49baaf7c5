"""One item of the corpus: what is asked and the one right answer. Holds no logic."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Item:
    """A prompt, its only accepted answer, and the row of the evaluation it belongs to."""

    row: str
    prompt: str
    answer: str
