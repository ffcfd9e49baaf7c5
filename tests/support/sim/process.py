"""A process of the simulated world: its tasks, its clocks, and its sudden death.

Whatever a dead process still does on its way out (its tasks run their `finally`) must reach nobody:
network and disks ask `alive` before they take anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from support.clock import START_MS
from support.sim.loop import HERE, START_S


class Process:
    """One life of one party; `skew_ms` is how wrong its wall clock is.

    `epoch_ms` is the wall clock at the loop's second START_S.
    """

    def __init__(
        self, name: str, loop: asyncio.AbstractEventLoop, epoch_ms: int = START_MS
    ) -> None:
        self.name = name
        self.loop = loop
        self._epoch_ms = epoch_ms
        self.alive = True
        self.skew_ms = 0
        self._stopped_s: float | None = None  # since when
        self._asleep_s = 0.0  # for so long its monotonic clock stood still
        self.tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, Any], label: str = "") -> asyncio.Task[Any]:
        """Run something in this process."""
        token = HERE.set(self)
        try:
            task = self.loop.create_task(work, name=f"{self.name}/{label}")
        finally:
            HERE.reset(token)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    async def kill(self) -> None:
        """SIGKILL: nothing that it does from now on counts."""
        self.alive = False
        self.go_on()
        while dying := sorted(self._all(), key=hash):
            for task in dying:
                task.cancel()
            await asyncio.wait(dying, timeout=0.001)  # some shield themselves: again

    def _all(self) -> list[asyncio.Task[Any]]:
        """Its tasks, and all that they started."""
        tasks = asyncio.all_tasks(self.loop)
        return [task for task in tasks if getattr(task, "process", None) is self]

    @property
    def stopped(self) -> bool:
        """Whether it stands still."""
        return self._stopped_s is not None

    def stop(self) -> None:
        """SIGSTOP, or the sleep of its machine."""
        if self.alive and self._stopped_s is None:
            self._stopped_s = self.loop.time()
            self.loop.stop_process(self)  # type: ignore[attr-defined]

    def go_on(self, *, slept: bool = False) -> None:
        """SIGCONT; after a sleep the monotonic clock has stood still meanwhile."""
        if self._stopped_s is None:
            return
        asleep_s = self.loop.time() - self._stopped_s if slept else 0.0
        self._stopped_s, self._asleep_s = None, self._asleep_s + asleep_s
        self.loop.continue_process(self, asleep_s)  # type: ignore[attr-defined]

    def monotonic(self) -> float:
        """Its monotonic clock, seconds."""
        return self.loop.time() - self._asleep_s

    def now_ms(self) -> int:
        """Its wall clock, milliseconds since 1970."""
        return self._epoch_ms + round((self.loop.time() - START_S) * 1000) + self.skew_ms


def check_alive() -> None:
    """Stop a task of a process that was killed; whoever looks from outside of the world goes on."""
    process = HERE.get()
    if process is not None and not process.alive:
        raise asyncio.CancelledError
