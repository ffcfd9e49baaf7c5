"""An event loop on virtual time: nothing waits, nothing runs in a thread, and every run is alike.

When all that is left is waiting, time jumps to the next timer. Tasks hash by the order they were
made in, so that sets of them are walked in the same order each time. What a process does that was
stopped waits until it goes on: its timers too, however late they are by then.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import selectors
from collections.abc import Callable
from contextvars import Context, ContextVar
from typing import Any

START_S = 1000.0
HERE: ContextVar[Any] = ContextVar("process", default=None)
"""The process that runs now; what a task starts belongs to the same one."""
TURNS_MAX = 3_000_000
STEP_S = 1e-6  # in which time passes, and timers are due


class StuckError(Exception):
    """Everything waits, and nothing will ever happen."""


class _Jump(selectors.SelectSelector):
    """A selector that lets virtual time pass in the place of waiting."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise StuckError
        self._loop.turns += 1
        if self._loop.turns > TURNS_MAX:
            raise StuckError(f"more than {TURNS_MAX} turns")
        # Whoever sleeps for less than floats can tell would otherwise sleep for ever.
        self._loop.now_s += max(STEP_S, timeout) if timeout > 0 else 0.0
        return []


class _Task(asyncio.Task[Any]):
    _numbers = itertools.count()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._number = next(self._numbers)
        self.process = HERE.get()
        super().__init__(*args, **kwargs)

    def __hash__(self) -> int:
        return self._number


class VirtualLoop(asyncio.SelectorEventLoop):
    """The loop; `now_s` is its time."""

    def __init__(self) -> None:
        self.now_s = START_S
        self.turns = 0
        super().__init__(_Jump(self))
        self._stopped: dict[Any, tuple[list[Any], list[asyncio.Handle]]] = {}
        self._clock_resolution = STEP_S  # adding up floats may end just before a timer
        self.set_task_factory(lambda loop, coro, **more: _Task(coro, loop=loop, **more))

    def time(self) -> float:
        """Virtual seconds."""
        return self.now_s

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        """As every loop's; what belongs to a process that is stopped waits."""
        if self._stopped:
            process = HERE.get() if context is None else context.get(HERE)
            if process in self._stopped:
                handle = asyncio.Handle(callback, args, self, context)
                self._stopped[process][1].append(handle)
                return handle
        return super().call_soon(callback, *args, context=context)

    def stop_process(self, process: object) -> None:
        """Nothing of that process runs from now on."""
        scheduled: list[Any] = self._scheduled  # type: ignore[attr-defined]
        timers = [one for one in scheduled if _owner(one) is process and not one.cancelled()]
        for timer in timers:
            timer._scheduled = False
        scheduled[:] = [one for one in scheduled if _owner(one) is not process or one.cancelled()]
        heapq.heapify(scheduled)
        self._stopped[process] = timers, []

    def continue_process(self, process: object, asleep_s: float = 0.0) -> None:
        """It goes on; `asleep_s` is for how long its monotonic clock stood still as well."""
        timers, ready = self._stopped.pop(process)
        for timer in (one for one in timers if not one.cancelled()):
            timer._when += asleep_s
            timer._scheduled = True
            heapq.heappush(self._scheduled, timer)  # type: ignore[attr-defined]
        self._ready.extend(one for one in ready if not one.cancelled())  # type: ignore[attr-defined]

    def run_in_executor(  # type: ignore[override]
        self, executor: object, function: Callable[..., Any], *arguments: Any
    ) -> asyncio.Future[Any]:
        """Run it at once, here."""
        del executor
        done = self.create_future()
        try:
            done.set_result(function(*arguments))
        except Exception as error:
            done.set_exception(error)
        return done


def _owner(handle: Any) -> object:
    return handle._context.get(HERE)


def end(loop: asyncio.AbstractEventLoop) -> None:
    """Cancel what still runs on a loop, wait for it, and close the loop."""
    loop.set_exception_handler(lambda *_: None)
    for _ in range(3):
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.wait(left) if left else asyncio.sleep(0))
    loop.close()
