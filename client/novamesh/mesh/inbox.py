"""What one thread says and asyncio reads: bounded, and the oldest is dropped first.

Rule: however long the loop is blocked, the sender never waits and memory does not grow.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator


class Inbox:
    """Bytes from another thread; made in the loop that reads them, with one reader."""

    def __init__(self, entries_max: int) -> None:
        self._entries: deque[bytes] = deque(maxlen=entries_max)
        self._loop = asyncio.get_running_loop()
        self._filled = asyncio.Event()
        self._waking = False
        self._closed = False

    def put(self, entry: bytes) -> None:
        """Leave an entry; any thread, at any time."""
        self._entries.append(entry)
        if not self._waking:  # one wake-up at a time, or a blocked loop would collect them
            self._waking = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody reads any more
                self._loop.call_soon_threadsafe(self._wake)

    def close(self) -> None:
        """The reader ends when it has read what is there; called in the loop."""
        self._closed = True
        self._filled.set()

    async def read(self) -> AsyncIterator[bytes]:
        """Every entry in order, but for those that were dropped, until it is closed."""
        while True:
            self._filled.clear()
            while self._entries:
                yield self._entries.popleft()
            if self._closed:
                return
            await self._filled.wait()

    def _wake(self) -> None:
        self._waking = False
        self._filled.set()
