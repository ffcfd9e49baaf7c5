"""Work beside the event loop that no end of a process waits for.

Rule: what cannot be broken off, a look-up of a name above all, is done in a daemon thread. An event
loop's own pool has threads that its end waits for: that costs seconds where a broker says nothing,
half a minute where no name server does.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


async def in_daemon_thread(
    name: str, work: Callable[[], Result], discard: Callable[[Result], object] = lambda _: None
) -> Result:
    """What `work` returns or raises; `discard` gets a result that nobody waits for any more.

    Who is cancelled leaves the thread behind: one that looks again waits for the last look first,
    or bounds how often it is called.
    """
    loop = asyncio.get_running_loop()
    found: asyncio.Future[Result] = loop.create_future()

    def give(result: Result) -> None:
        if found.done():
            discard(result)
        else:
            found.set_result(result)

    def fail(error: Exception) -> None:
        if not found.done():
            found.set_exception(error)

    def run() -> None:
        try:
            result = work()
        except Exception as error:  # boundary of the thread: whoever waits is told of bugs, too
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(fail, error)
            return
        try:
            loop.call_soon_threadsafe(give, result)
        except RuntimeError:  # the loop has ended meanwhile
            discard(result)

    threading.Thread(target=run, name=name, daemon=True).start()
    return await found
