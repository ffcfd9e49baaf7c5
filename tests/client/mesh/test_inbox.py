"""Bytes from another thread: bounded, in order, the oldest dropped."""

from __future__ import annotations

import asyncio

from novamesh.mesh.inbox import Inbox


async def test_entries_of_another_thread_come_in_order() -> None:
    inbox = Inbox(100)

    def fill() -> None:
        for number in range(50):
            inbox.put(bytes([number]))

    reading = asyncio.create_task(_collect(inbox))
    await asyncio.to_thread(fill)
    inbox.close()
    assert await reading == [bytes([number]) for number in range(50)]


async def test_oldest_entries_give_way() -> None:
    inbox = Inbox(3)
    for number in range(10):
        inbox.put(bytes([number]))
    inbox.close()
    assert await _collect(inbox) == [b"\x07", b"\x08", b"\x09"]


async def test_loop_is_woken_once_however_much_comes() -> None:
    inbox = Inbox(10)
    loop = asyncio.get_running_loop()
    before = len(loop._ready)  # type: ignore[attr-defined]
    for _ in range(1000):
        inbox.put(b"x")
    assert len(loop._ready) - before == 1  # type: ignore[attr-defined]


async def test_entry_for_a_loop_that_is_gone_is_nobodys_error() -> None:
    made: list[Inbox] = []

    async def make() -> None:
        made.append(Inbox(3))

    await asyncio.to_thread(asyncio.run, make())
    made[0].put(b"late")


async def _collect(inbox: Inbox) -> list[bytes]:
    return [entry async for entry in inbox.read()]
