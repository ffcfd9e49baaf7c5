"""Wilson's score interval for a share of right answers.

Rules: pure; unlike the normal interval it stays inside 0…1 and is honest at 0 % and 100 %.
Source: E. B. Wilson, JASA 22 (1927) 209-212.
"""

from __future__ import annotations

import math
from typing import Final

Z_95: Final = 1.959963984540054
"""Two-sided 95 %."""


def wilson(right: int, asked: int, z: float = Z_95) -> tuple[float, float]:
    """Low and high end of the interval for `right` of `asked`; (0, 1) when nothing was asked.

    Raises:
        ValueError: the counts are not 0 <= right <= asked.
    """
    if not 0 <= right <= asked:
        raise ValueError(f"{right} right of {asked} asked is not possible")
    if asked == 0:
        return 0.0, 1.0
    share = right / asked
    spread = z * z / asked
    centre = share + spread / 2
    half = z * math.sqrt(share * (1 - share) / asked + spread / (4 * asked))
    low, high = (centre - half) / (1 + spread), (centre + half) / (1 + spread)
    return max(0.0, low), min(1.0, high)
