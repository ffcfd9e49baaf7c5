"""Keep a bridge's trio side running: a crash is one log line, a pause and a new start.

Rules: the pause doubles from 0.2 s to 30 s and is forgotten after a minute of life; what fails here
never raises anywhere else: a call meanwhile is UNAVAILABLE, and jobs on other paths know nothing
of it. A machine on which the mesh cannot work at all (UNSUPPORTED, BAD_CONFIG) is told at once at
the first start; only later crashes are repaired.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Final, Generic, TypeVar

from novamesh.mesh.bridge import Bridge, Main
from novamesh_proto.errors import Code, NovaMeshError

T = TypeVar("T")

PAUSE_MIN_S: Final = 0.2
PAUSE_MAX_S: Final = 30.0
_PROVEN_S: Final = 60.0  # a life as long as this is no crash loop

_log = logging.getLogger(__name__)


class Supervisor(Generic[T]):
    """`async with Supervisor(make)`: `make()` gives the main of each life."""

    def __init__(self, make: Callable[[], Main[T]], pause_min_s: float = PAUSE_MIN_S) -> None:
        self._make = make
        self._pause_min_s = pause_min_s
        self._bridge: Bridge[T] | None = None
        self.restarts = 0

    @property
    def value(self) -> T | None:
        """What the present life gave at its start; None while there is none."""
        return None if self._bridge is None else self._bridge.value

    async def __aenter__(self) -> Supervisor[T]:
        first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._supervise(first), name="mesh supervisor")
        try:
            await first
        except BaseException:
            await self._stop()  # cancelled, or it cannot work here: no task is left behind
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._stop()

    async def call(self, function: Callable[..., Awaitable[object]], *arguments: object) -> object:
        """Await `function(value, *arguments)` on the trio side of the present life.

        Raises:
            NovaMeshError: UNAVAILABLE while there is none, and if it ends meanwhile.
        """
        bridge = self._present()
        return await bridge.call(function, bridge.value, *arguments)

    def send(self, function: Callable[..., object], *arguments: object) -> None:
        """Run `function(value, *arguments)` in the trio thread soon.

        Raises:
            NovaMeshError: UNAVAILABLE while there is no life.
        """
        bridge = self._present()
        bridge.send(function, bridge.value, *arguments)

    def _present(self) -> Bridge[T]:
        if self._bridge is None:
            raise NovaMeshError(
                Code.UNAVAILABLE, "the mesh is starting again", "try again in a moment"
            )
        return self._bridge

    async def _stop(self) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError, NovaMeshError):
            await self._task

    async def _supervise(self, first: asyncio.Future[None]) -> None:
        loop = asyncio.get_running_loop()
        pause_s = self._pause_min_s
        while True:
            began = loop.time()
            try:
                async with Bridge(self._make()) as bridge:
                    self._bridge = bridge
                    if not first.done():
                        first.set_result(None)
                    error = await bridge.ended()
            except Exception as failure:  # the task's boundary: told below, and tried again
                error = failure
                if not first.done():
                    first.set_exception(failure)
                    return
            finally:
                self._bridge = None
            if loop.time() - began > _PROVEN_S:
                pause_s = self._pause_min_s
            _log.warning("mesh stopped (%s), starts again in %.1f s", _name(error), pause_s)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, PAUSE_MAX_S)
            self.restarts += 1


def _name(error: BaseException | None) -> str:
    return "ended" if error is None else f"{type(error).__name__}: {error}"
