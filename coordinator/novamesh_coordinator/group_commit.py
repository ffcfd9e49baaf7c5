"""When the next commit may begin: at once while little happens, together while much does.

A commit costs the same for one step as for ten: a write that the disk must confirm. Rules: a step
that comes alone is committed alone and at once; once more than STEPS_PER_S come for a while,
commits begin at least GATHER_S apart, and what came meanwhile goes in one. (PostgreSQL's
commit_delay and commit_siblings.) Pure: whoever asks brings the time.
"""

from __future__ import annotations

from typing import Final

GATHER_S: Final = 0.01
STEPS_PER_S: Final = 100.0
BURST: Final = 16.0  # steps that do not count as much yet


class GroupCommit:
    """How busy it is, and when the last commit began."""

    def __init__(self) -> None:
        self._began_s = float("-inf")
        self._level = 0.0  # leaks STEPS_PER_S, fills with steps

    def begin(self, steps: int, now_s: float) -> None:
        """A commit of so many steps begins."""
        leaked = (now_s - self._began_s) * STEPS_PER_S
        self._level = max(0.0, self._level - leaked) + steps
        self._began_s = now_s

    def pause_s(self, now_s: float) -> float:
        """Seconds until the next commit may begin; at most GATHER_S."""
        if self._level <= BURST:
            return 0.0
        return max(0.0, self._began_s + GATHER_S - now_s)
