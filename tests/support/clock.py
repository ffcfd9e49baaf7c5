"""A clock that only moves when it is told to."""

from __future__ import annotations

START_MS = 1_800_000_000_000  # 2027-01-15T08:00:00Z


class ManualClock:
    """Wall clock in ms and monotonic clock in seconds; pass the methods where a clock is asked for.

    `advance` moves both; `set_wall` sets the wall clock alone, back as well as forth.
    """

    def __init__(self, now_ms: int = START_MS, monotonic_s: float = 1000.0) -> None:
        self._now_ms = now_ms
        self._monotonic_s = monotonic_s

    def now_ms(self) -> int:
        """Milliseconds since 1970."""
        return self._now_ms

    def monotonic(self) -> float:
        """Seconds since some moment; never goes back."""
        return self._monotonic_s

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        if seconds < 0:
            raise ValueError("time does not go back; set_wall does")
        self._now_ms += round(seconds * 1000)
        self._monotonic_s += seconds

    def set_wall(self, now_ms: int) -> None:
        """Somebody set the wall clock."""
        self._now_ms = now_ms
