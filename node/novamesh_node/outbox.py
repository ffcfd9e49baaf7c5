"""What waits to be written to one session: in order, bounded, and gone with the session.

`put` waits for room, which is how a slow connection slows the engine down; `post` never waits and
is for the few things that must not. Once closed it takes everything and keeps nothing: what matters
is kept in the attempts' tails and sent again to the next session. Used on the loop only.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

from novamesh_proto.messages import AttachRequest

OUTBOX_MAX: Final = 256
POSTED_MAX: Final = 4 * OUTBOX_MAX


class Outbox:
    """The queue of one session."""

    def __init__(self) -> None:
        self._waiting: deque[AttachRequest] = deque()
        self._changed = asyncio.Condition()
        self._wake = asyncio.Event()
        self._ending = False
        self.closed = False

    def __len__(self) -> int:
        return len(self._waiting)

    async def put(self, message: AttachRequest) -> None:
        """Queue a message when there is room; drop it if the session ends first."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.closed or len(self._waiting) < OUTBOX_MAX)
        self.post(message)

    def post(self, message: AttachRequest) -> None:
        """Queue a message now. A session that lags this far behind is closed."""
        if self.closed:
            return
        if len(self._waiting) >= POSTED_MAX:
            self.closed = True
        self._waiting.append(message)
        self._wake.set()

    async def next(self) -> AttachRequest | None:
        """The next message; None once the outbox is closed, or ending and empty."""
        while not self._waiting and not self.closed:
            if self._ending:
                return None
            self._wake.clear()
            await self._wake.wait()
        if self.closed:
            return None
        message = self._waiting.popleft()
        async with self._changed:
            self._changed.notify()
        return message

    def end(self) -> None:
        """Nothing more will come: what waits is still to be written."""
        self._ending = True
        self._wake.set()

    async def close(self) -> None:
        """Drop everything; whoever waits goes on."""
        self.closed = True
        self._waiting.clear()
        self._wake.set()
        async with self._changed:
            self._changed.notify_all()
