"""The gates: what each figure must reach on which card, and where we would like it to be.

Lines that name no model are judged at Phi-mini's shape. A line for a card that is another one has
no gate here.
"""

from __future__ import annotations

import re
from typing import Final, TypedDict

ANY: Final = "any"
H200: Final = "H200"
RTX_4090: Final = "4090-class"

# By line and class of card: least, stretch. Tokens a second, per cent, and ratios.
GATES: Final[dict[str, dict[str, tuple[float, float]]]] = {
    "decode Phi-mini": {H200: (1000, 1400), RTX_4090: (420, 550)},
    "decode Qwen3-30B-A3B": {H200: (650, 900)},
    "expert GEMV": {H200: (55, 80), RTX_4090: (70, 80)},
    "head": {ANY: (80, 90)},
    "batch 16 vs 1": {ANY: (6, 9)},
    "NF4 vs bf16": {ANY: (2.5, 3.2)},
    "vs bitsandbytes": {ANY: (10, 20)},
}


class Bar(TypedDict):
    """What a `Figure` is judged by."""

    least: float | None
    stretch: float | None


NONE: Final = Bar(least=None, stretch=None)


def card_class(name: str) -> str:
    """Which column of the table a card belongs to, "" for none of its own."""
    if re.search(r"\bH200\b", name):  # a GH200 is another card
        return H200
    return RTX_4090 if re.search(r"\bRTX 4090\b(?! Laptop)", name) else ""


def bar(line: str, card: str, counts: bool) -> Bar:
    """The bar of a line on a card; none where figures do not count."""
    found = GATES.get(line, {})
    pair = found.get(card_class(card)) or found.get(ANY)
    if pair is None or not counts:
        return NONE
    return Bar(least=pair[0], stretch=pair[1])
