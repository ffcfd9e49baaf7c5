"""Token buckets by name: how often somebody may ask. Pure; the clock is passed in, in seconds."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final

from novamesh_proto.errors import Code, NovaMeshError

NAMES_MAX: Final = 16_384


@dataclass(frozen=True, slots=True)
class Rate:
    """Requests a second in the long run, and how many may come at once."""

    per_s: float
    burst: float


class Buckets:
    """One bucket a name; the name not heard of for longest is forgotten first."""

    def __init__(self, rate: Rate) -> None:
        self._rate = rate
        self._levels: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()

    def take(self, name: Hashable, now_s: float) -> None:
        """Take one token.

        Raises:
            NovaMeshError: BUSY with the time until there is one again.
        """
        rate = self._rate
        level, at_s = self._levels.pop(name, (rate.burst, now_s))
        level = min(rate.burst, level + max(0.0, now_s - at_s) * rate.per_s)
        taken = level >= 1
        self._levels[name] = (level - taken, now_s)
        if len(self._levels) > NAMES_MAX:
            self._levels.popitem(last=False)
        if not taken:
            raise NovaMeshError(
                Code.BUSY,
                f"too many requests, {rate.per_s:g} a second are taken",
                "slow down",
                math.ceil((1 - level) / rate.per_s * 1000),
            )
