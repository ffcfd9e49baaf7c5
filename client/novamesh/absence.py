"""Whether a coordinator that was away is asked again: at first for a new answer, then after pauses.

Where answers come from nodes themselves meanwhile, each of them would else wait for a coordinator
that does not answer. Rules: it is asked for a short time, once at a time, and not again before a
pause that grows up to PAUSE_S_MAX, each time that it was asked in vain, however many lost it; once
it answers, whatever is new goes to it again. What nodes did meanwhile they tell it themselves.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from novamesh.clock import Clock

PAUSE_S: Final = 1.0  # after it went
PAUSE_S_MAX: Final = 8.0

_log: Final = logging.getLogger(__name__)


class Absence:
    """One coordinator's; `ask` tells within a short time whether it is there."""

    def __init__(self, ask: Callable[[], Awaitable[bool]], clock: Clock) -> None:
        self._ask = ask
        self._clock = clock
        self._pause_s = 0.0  # 0: it is not away as far as is known
        self._next_s = 0.0  # when it is asked again, monotonic
        self._asking = asyncio.Lock()

    def begin(self) -> None:
        """It is away; nothing where that is known."""
        if not self._pause_s:
            self._wait(PAUSE_S)

    async def over(self) -> bool:
        """Whether it may be there."""
        async with self._asking:
            if not self._pause_s:
                return True
            if self._clock.monotonic() < self._next_s:
                return False
            if not await self._ask():
                self._wait(min(PAUSE_S_MAX, 2 * self._pause_s))
                return False
            self._pause_s = 0.0
            _log.info("the coordinator is back")
            return True

    def _wait(self, pause_s: float) -> None:
        self._pause_s = pause_s
        self._next_s = self._clock.monotonic() + pause_s
