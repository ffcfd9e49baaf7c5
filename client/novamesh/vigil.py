"""Whether somebody still is at the other end of a line on which an answer is due and nothing comes.

A machine that loses its power and a link that is cut tell nobody, and gRPC's own pings need 22 s to
notice. Rules: whatever is heard on a line proves that somebody is there; after SILENT_S without it
the other end is asked, on that line first, then on a fresh one, each time for a short while, and
only if both is in vain it is gone. So a node that works for long is not taken for a coordinator
that is away. Where no answer is due nobody is asked, and a line has one question at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Final

from novamesh_proto.errors import Code, NovaMeshError

SILENT_S: Final = 2.5
ASK_S: Final = 2.5  # for the answer: a coordinator lets who asks too often wait for a refusal
FRESH_S: Final = 1.5  # to dial
FRESH_S_MAX: Final = 3.0
DIAL_RTTS: Final = 8  # TCP and TLS twice and HTTP/2 take about five
_NAP_S: Final = 0.01  # less than this a clock may not move in


def fresh_s(rtt_s: float | None) -> float:
    """Seconds to dial whoever is `rtt_s` away, None if that was not measured."""
    return min(FRESH_S_MAX, max(FRESH_S, DIAL_RTTS * (rtt_s or 0.0)))


class FellSilentError(NovaMeshError):
    """UNAVAILABLE: whoever was followed was asked in vain, and not heard for `for_s` seconds."""

    def __init__(self, for_s: float) -> None:
        super().__init__(Code.UNAVAILABLE, "nobody answers any more at the other end")
        self.for_s = for_s


class Vigil:
    """Looks after one line; on one event loop.

    `ask` raises NovaMeshError where there is no answer in time; `give_up` is called once after
    that, and ends whatever is due.
    """

    def __init__(
        self, ask: Callable[[], Awaitable[object]], give_up: Callable[[], Awaitable[None]]
    ) -> None:
        self._ask = ask
        self._give_up = give_up
        self._due = 0
        self._heard_s = 0.0
        self._task: asyncio.Task[None] | None = None

    @property
    def silent_s(self) -> float:
        """Seconds since something came."""
        return asyncio.get_running_loop().time() - self._heard_s

    def hear(self) -> None:
        """Something came."""
        self._heard_s = asyncio.get_running_loop().time()

    @contextlib.contextmanager
    def due(self) -> Iterator[None]:
        """An answer is due as long as this is entered."""
        self.hear()
        self._due += 1
        if self._task is None:
            self._task = asyncio.create_task(self._keep(), name="vigil")
        try:
            yield
        finally:
            self._due -= 1
            if not self._due:
                self._task.cancel()
                self._task = None

    async def _keep(self) -> None:
        while True:
            if self.silent_s < SILENT_S:
                await asyncio.sleep(max(_NAP_S, SILENT_S - self.silent_s))
                continue
            try:
                await self._ask()
            except NovaMeshError:
                if self.silent_s >= SILENT_S:
                    return await self._give_up()
                continue  # something else came meanwhile
            self.hear()
