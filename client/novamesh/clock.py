"""The two clocks of a process, passed to whoever decides by time.

The wall clock labels what is signed, the monotonic one measures; neither is read anywhere else.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Clock:
    """`now_ms`: milliseconds since 1970; `monotonic`: seconds since some moment."""

    now_ms: Callable[[], int]
    monotonic: Callable[[], float]

    @staticmethod
    def system() -> Clock:
        """This machine's clocks."""
        return Clock(lambda: time.time_ns() // 1_000_000, time.monotonic)
