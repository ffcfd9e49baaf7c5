"""Moments at which something runs out, by key: set, move, drop, take what is due.

Moving a moment later, which every sign of progress does, costs nothing: the old entry stays in the
heap and is put back when it comes up. Ticks in milliseconds; no clock of its own.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Generic, TypeVar

K = TypeVar("K", bound=tuple[int, bytes])  # ordered: what is due together has one fixed order


class Timers(Generic[K]):
    """One due moment a key."""

    def __init__(self) -> None:
        self._due: dict[K, int] = {}
        self._heap: list[tuple[int, K]] = []

    def __len__(self) -> int:
        return len(self._due)

    def set(self, key: K, due_ms: int) -> None:
        """Set or move the moment of a key."""
        before = self._due.get(key)
        self._due[key] = due_ms
        if before is None or due_ms < before:
            heapq.heappush(self._heap, (due_ms, key))

    def drop(self, key: K) -> None:
        """Forget a key; harmless if there is none."""
        self._due.pop(key, None)

    def due(self, key: K) -> int | None:
        """The moment of a key."""
        return self._due.get(key)

    def next_ms(self) -> int | None:
        """A moment before which nothing runs out, or None."""
        self._settle()
        return self._heap[0][0] if self._heap else None

    def take_due(self, now_ms: int) -> Iterator[K]:
        """Keys whose moment has come, earliest first; each is forgotten as it is taken."""
        while True:
            self._settle()
            if not self._heap or self._heap[0][0] > now_ms:
                return
            _, key = heapq.heappop(self._heap)
            del self._due[key]
            yield key

    def _settle(self) -> None:
        """Bring an entry to the top whose moment is still the one that counts."""
        while self._heap:
            at_ms, key = self._heap[0]
            due_ms = self._due.get(key)
            if due_ms == at_ms:
                return
            heapq.heappop(self._heap)
            if due_ms is not None and due_ms > at_ms:
                heapq.heappush(self._heap, (due_ms, key))
