"""Ask again where asking again can help: the codes that the one table calls retryable.

Rules: a refusal that names a time is asked again after that time, anything else with growing
pauses, all of them jittered, so that those who were refused together do not come back together.
Total time is always bounded. Tries are too, except where nobody took what was asked: a full pool is
asked until the time is over. The last error is what the caller sees. Whoever calls makes sure that
asking twice is harmless.

A library prints nothing: each pause is an INFO record of the standard logger `novamesh.retries`,
which nobody sees who did not ask for it.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
)

from novamesh_proto.errors import Code, NovaMeshError

T = TypeVar("T")

WAIT_MAX_S: Final = 5.0
_WAIT_INITIAL_S: Final = 0.1
_JITTER_S: Final = 0.2
_NAMED_JITTER: Final = 0.5  # share of a named pause
_NAMED_GROWTH: Final = 1.2
LAST_TRY_S: Final = 0.25  # before the time is over: what a last try needs

sleep = asyncio.sleep  # tests wait for nothing
_log: Final = logging.getLogger(__name__)


async def ask(
    call: Callable[[], Awaitable[T]],
    attempts: int,
    timeout_s: float,
    again: Callable[[NovaMeshError], bool | float] | None = None,
) -> T:
    """The result of `call`, tried again while it is refused for a reason that can heal.

    `again` decides on an error in the place of `pause`; `attempts` are tries that were refused for
    another reason than BUSY, the first included.

    Raises:
        NovaMeshError: what the last try was refused with.
    """
    verdict = again or pause
    failed, last = 0, None  # the try before the last one, once the time is nearly over

    def wait_s(state: RetryCallState) -> float:
        nonlocal last
        usual = _wait_s(verdict(_refusal(state)), state.attempt_number)
        left = timeout_s - (state.seconds_since_start or 0.0) - LAST_TRY_S
        if usual > left and last is None:
            last = state.attempt_number
        return min(usual, max(0.0, left))

    def too_late(state: RetryCallState) -> bool:
        over = (state.seconds_since_start or 0.0) >= timeout_s - LAST_TRY_S
        return over or (last is not None and state.attempt_number > last)

    def used_up(state: RetryCallState) -> bool:
        nonlocal failed
        failed += _refusal(state).code is not Code.BUSY
        return failed >= attempts

    retrying = AsyncRetrying(
        retry=retry_if_exception(
            lambda e: isinstance(e, NovaMeshError) and verdict(e) is not False
        ),
        wait=wait_s,
        stop=lambda state: used_up(state) or too_late(state),
        sleep=lambda seconds: sleep(seconds),
        before_sleep=_tell,
        reraise=True,
    )
    async for attempt in retrying:
        with attempt:
            return await call()
    raise AssertionError("a retry loop ends with a result or an error")


def pause(error: NovaMeshError) -> bool | float:
    """Whether to try again, or after how many seconds."""
    if not error.meaning.retryable:
        return False
    if error.retry_after_ms:
        return min(error.retry_after_ms / 1000, WAIT_MAX_S)
    return True


def _wait_s(named: bool | float, tried: int) -> float:
    if named is not True:
        # A pool that names a short time again and again is not asked ever more often.
        longest = max(named, WAIT_MAX_S)
        grown = min(longest, max(named, _WAIT_INITIAL_S) * _NAMED_GROWTH ** min(tried - 1, 20))
        return grown * (1 + random.uniform(0, _NAMED_JITTER))
    growing = _WAIT_INITIAL_S * 2.0 ** min(tried - 1, 10)
    return min(WAIT_MAX_S, growing + random.uniform(0, _JITTER_S))


def _refusal(state: RetryCallState) -> NovaMeshError:
    assert state.outcome is not None
    error = state.outcome.exception()
    assert isinstance(error, NovaMeshError)
    return error


def _tell(state: RetryCallState) -> None:
    _log.info("%s; trying again in %.1f s", _refusal(state), state.upcoming_sleep)
