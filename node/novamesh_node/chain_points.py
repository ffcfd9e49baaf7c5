"""Where one attempt's chain stood after each of its chunks: what a client's word is held against.

Rules: bounded, the oldest goes first, since a client says what it holds every second or sooner; a
word about what is no longer here fits nothing.
"""

from __future__ import annotations

from typing import Final

POINTS_MAX: Final = 4_096  # at 20 chunks a second, more than three minutes


class ChainPoints:
    """The points of one chain."""

    def __init__(self) -> None:
        self._points: dict[int, tuple[int, bytes]] = {}

    def __len__(self) -> int:
        return len(self._points)

    def add(self, chunks: int, position: int, head: bytes) -> None:
        """The chain has so many chunks now, which end at that position."""
        self._points[chunks] = (position, head)
        if len(self._points) > POINTS_MAX:
            del self._points[next(iter(self._points))]

    def holds(self, chunks: int, position: int, head: bytes) -> bool:
        """Whether the chain stood there."""
        return self._points.get(chunks) == (position, head)
