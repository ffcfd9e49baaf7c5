"""A trio run in a thread, as asyncio sees it."""

from __future__ import annotations

import asyncio
import threading

import pytest
import trio

from novamesh.mesh.bridge import Bridge
from novamesh_proto.errors import Code, NovaMeshError


async def quiet(*, task_status: trio.TaskStatus[str]) -> None:
    """A trio side that only runs."""
    task_status.started("value")
    await trio.sleep_forever()


async def answer(question: int) -> int:
    """A call that needs trio."""
    await trio.lowlevel.checkpoint()
    return question + 1


async def test_calls_run_in_trio_and_come_back() -> None:
    async with Bridge(quiet) as bridge:
        assert bridge.value == "value"
        assert await bridge.call(answer, 41) == 42
        assert sorted(await asyncio.gather(*(bridge.call(answer, n) for n in range(50)))) == [
            *range(1, 51)
        ]


async def test_error_of_a_call_is_raised_where_it_was_asked() -> None:
    async def fail() -> None:
        raise NovaMeshError(Code.NOT_FOUND, "nobody")

    async with Bridge(quiet) as bridge:
        with pytest.raises(NovaMeshError, match="nobody"):
            await bridge.call(fail)
        assert await bridge.call(answer, 1) == 2


async def test_call_that_is_given_up_is_cancelled_in_trio() -> None:
    cancelled = threading.Event()

    async def wait() -> None:
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    async with Bridge(quiet) as bridge:
        call = asyncio.create_task(bridge.call(wait))
        await bridge.call(answer, 1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await asyncio.to_thread(cancelled.wait, 30)


async def test_crash_ends_calls_and_is_told() -> None:
    crash = trio.Event()

    async def fragile(*, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        await crash.wait()
        raise KeyError("gone")

    async with Bridge(fragile) as bridge:
        call = asyncio.create_task(bridge.call(trio.sleep_forever))
        await bridge.call(answer, 1)
        bridge.send(crash.set)
        assert isinstance(await bridge.ended(), KeyError)
        with pytest.raises(NovaMeshError) as raised:
            await call
        assert raised.value.code is Code.UNAVAILABLE
        with pytest.raises(NovaMeshError):
            await bridge.call(answer, 1)
        with pytest.raises(NovaMeshError):
            bridge.send(print)


async def test_start_that_fails_is_raised_and_leaves_no_thread() -> None:
    async def broken(*, task_status: trio.TaskStatus[None]) -> None:
        raise NovaMeshError(Code.BAD_CONFIG, "no such address")

    with pytest.raises(NovaMeshError, match="no such address"):
        async with Bridge(broken, name="broken bridge"):
            raise AssertionError
    assert "broken bridge" not in {thread.name for thread in threading.enumerate()}


async def test_start_that_is_given_up_leaves_no_thread() -> None:
    async def slow(*, task_status: trio.TaskStatus[None]) -> None:
        await trio.sleep_forever()

    async def enter() -> None:
        async with Bridge(slow, name="slow bridge"):
            raise AssertionError

    for pause_s in (0.0, 0.05):
        task = asyncio.create_task(enter())
        await asyncio.sleep(pause_s)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert "slow bridge" not in {thread.name for thread in threading.enumerate()}


async def test_two_bridges_live_in_one_loop() -> None:
    async with Bridge(quiet) as one, Bridge(quiet) as other:
        assert await one.call(answer, 1) == await other.call(answer, 1) == 2
    assert await one.ended() is None
