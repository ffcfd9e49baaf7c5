"""An event loop on virtual time: nothing waits, nothing runs in a thread, and every run is alike.

When all that is left is waiting, time jumps to the next timer. Tasks hash by the order they were
made in, so that sets of them are walked in the same order each time.
"""

from __future__ import annotations

import asyncio
import itertools
import selectors
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

START_S = 1000.0
HERE: ContextVar[Any] = ContextVar("process", default=None)
"""The process that runs now; what a task starts belongs to the same one."""
TURNS_MAX = 3_000_000


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
        self._loop.now_s += max(0.0, timeout)
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
        self._clock_resolution = 1e-6  # adding up floats may end just before a timer
        self.set_task_factory(lambda loop, coro, **more: _Task(coro, loop=loop, **more))

    def time(self) -> float:
        """Virtual seconds."""
        return self.now_s

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


def end(loop: asyncio.AbstractEventLoop) -> None:
    """Cancel what still runs on a loop, wait for it, and close the loop."""
    loop.set_exception_handler(lambda *_: None)
    for _ in range(3):
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.wait(left) if left else asyncio.sleep(0))
    loop.close()
