"""What is done beside the loop is waited for by who asked, and by nobody else."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import pytest

from novamesh_broker.daemon_thread import in_daemon_thread
from support.mqtt import until


async def test_what_it_returns_or_raises_is_told() -> None:
    def fail() -> None:
        raise ZeroDivisionError("a bug")

    assert await in_daemon_thread("work", lambda: threading.current_thread().name) == "work"
    with pytest.raises(ZeroDivisionError, match="a bug"):
        await in_daemon_thread("work", fail)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("loop_ends", [False, True])
def test_who_is_called_off_waits_for_nothing_and_what_comes_late_is_discarded(
    loop_ends: bool, fails: bool
) -> None:
    gate = threading.Event()
    threads = list[threading.Thread]()
    discarded = list[str]()

    def slow() -> str:
        threads.append(threading.current_thread())
        gate.wait(60)
        if fails:
            raise OSError("no name server answers")
        return "late"

    async def give_up() -> None:
        asked = asyncio.create_task(in_daemon_thread("slow", slow, discarded.append))
        await until(lambda: bool(threads))
        asked.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asked
        if not loop_ends:
            gate.set()
            await until(lambda: not threads[0].is_alive())
            await asyncio.sleep(0)

    asyncio.run(give_up())
    assert threads[0].daemon
    assert threads[0].is_alive() is loop_ends, "the end of the loop did not wait for it"
    gate.set()
    threads[0].join(10)
    assert discarded == ([] if fails else ["late"])
