"""Ask again where asking again can help: the codes that the one table calls retryable.

Rules: a refusal that names a time is asked again after that time, anything else with growing,
jittered pauses; tries and total time are bounded; the last error is what the caller sees. Whoever
calls makes sure that asking twice is harmless.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import stamina

from novamesh_proto.errors import NovaMeshError

T = TypeVar("T")

WAIT_MAX_S: Final = 5.0
_WAIT_INITIAL_S: Final = 0.1
_JITTER_S: Final = 0.2


async def ask(
    call: Callable[[], Awaitable[T]],
    attempts: int,
    timeout_s: float,
    again: Callable[[Exception], bool | float] | None = None,
) -> T:
    """The result of `call`, tried again while it is refused for a reason that can heal.

    `again` decides on an error in the place of `pause`.

    Raises:
        NovaMeshError: what the last try was refused with.
    """
    async for attempt in stamina.retry_context(
        on=again or pause,
        attempts=attempts,
        timeout=timeout_s,
        wait_initial=_WAIT_INITIAL_S,
        wait_max=WAIT_MAX_S,
        wait_jitter=_JITTER_S,
    ):
        with attempt:
            return await call()
    raise AssertionError("a retry loop ends with a result or an error")


def pause(error: Exception) -> bool | float:
    """Whether to try again, or after how many seconds."""
    if not isinstance(error, NovaMeshError) or not error.meaning.retryable:
        return False
    if error.retry_after_ms:
        return min(error.retry_after_ms / 1000, WAIT_MAX_S)
    return True
