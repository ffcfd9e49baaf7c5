"""Waiting for what production code has no event for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

WAIT_S = 10.0


async def wait_until(condition: Callable[[], object]) -> None:
    """Give whatever runs beside this time until something is so; raises TimeoutError."""
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110  nobody would tell
            await asyncio.sleep(0.003)
