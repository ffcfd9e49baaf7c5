"""The two clocks of a node, handed to whatever needs the time.

Wall time dates what is signed and what an owner says; monotonic time measures. Nothing else in this
part reads a clock, so a test moves both by hand; only `hardware` stops its own measurement.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Clock:
    """Wall clock in milliseconds since 1970, monotonic clock in nanoseconds."""

    wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000
    monotonic_ns: Callable[[], int] = time.monotonic_ns

    def monotonic_ms(self) -> int:
        """The monotonic clock in milliseconds."""
        return self.monotonic_ns() // 1_000_000
