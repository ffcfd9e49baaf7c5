"""Ask again where asking again can help: the codes that the one table calls retryable.

Rules: a refusal that names a time is asked again after that time, anything else with growing,
jittered pauses; tries and total time are bounded; the last error is what the caller sees. Whoever
calls makes sure that asking twice is harmless.

A library prints nothing: each pause is an INFO record of the standard logger `novamesh.retries`,
which nobody sees who did not ask for it.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from novamesh.clock import Clock
from novamesh_proto.errors import NovaMeshError

T = TypeVar("T")

WAIT_MAX_S: Final = 5.0
_WAIT_INITIAL_S: Final = 0.1
_JITTER_S: Final = 0.2

sleep = asyncio.sleep  # tests wait for nothing
_clock: Final = Clock.system()
_log: Final = logging.getLogger(__name__)


async def ask(
    call: Callable[[], Awaitable[T]],
    attempts: int,
    timeout_s: float,
    again: Callable[[NovaMeshError], bool | float] | None = None,
) -> T:
    """The result of `call`, tried again while it is refused for a reason that can heal.

    `again` decides on an error in the place of `pause`.

    Raises:
        NovaMeshError: what the last try was refused with.
    """
    began_s, tried = _clock.monotonic(), 0
    while True:
        try:
            return await call()
        except NovaMeshError as error:
            tried += 1
            named = (again or pause)(error)
            wait_s = _usual_wait_s(tried) if named is True else named
            ends_s = _clock.monotonic() - began_s + wait_s
            if named is False or tried >= attempts or ends_s >= timeout_s:
                raise
            _log.info("%s; trying again in %.1f s", error, wait_s)
        await sleep(wait_s)


def pause(error: NovaMeshError) -> bool | float:
    """Whether to try again, or after how many seconds."""
    if not error.meaning.retryable:
        return False
    if error.retry_after_ms:
        return min(error.retry_after_ms / 1000, WAIT_MAX_S)
    return True


def _usual_wait_s(tried: int) -> float:
    growing = _WAIT_INITIAL_S * 2.0 ** min(tried - 1, 10)
    return min(WAIT_MAX_S, growing + random.uniform(0, _JITTER_S))
