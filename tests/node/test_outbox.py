"""The outbox: order, back-pressure, and a clean end in every state."""

from __future__ import annotations

import asyncio

from novamesh_node.outbox import OUTBOX_MAX, POSTED_MAX, Outbox
from novamesh_proto.messages import AttachRequest, NodeLoad


def load(number: int) -> AttachRequest:
    return AttachRequest(load=NodeLoad(number, True))


async def test_keeps_the_order_of_what_is_put_and_posted() -> None:
    outbox = Outbox()
    await outbox.put(load(1))
    outbox.post(load(2))
    await outbox.put(load(3))
    assert [await outbox.next() for _ in range(3)] == [load(1), load(2), load(3)]


async def test_a_full_outbox_makes_putters_wait_until_there_is_room() -> None:
    outbox = Outbox()
    for number in range(OUTBOX_MAX):
        await outbox.put(load(number))
    waiting = asyncio.ensure_future(outbox.put(load(999)))
    await asyncio.sleep(0)
    assert not waiting.done()
    await outbox.next()
    await asyncio.wait_for(waiting, 1)
    assert len(outbox) == OUTBOX_MAX


async def test_a_post_never_waits_but_is_bounded() -> None:
    outbox = Outbox()
    for number in range(2 * POSTED_MAX):
        outbox.post(load(number % 4000))
    assert outbox.closed
    assert len(outbox) <= POSTED_MAX + 1
    assert await outbox.next() is None


async def test_closing_frees_whoever_waits_and_swallows_the_rest() -> None:
    outbox = Outbox()
    for number in range(OUTBOX_MAX):
        outbox.post(load(number))
    waiting = [asyncio.ensure_future(outbox.put(load(1))) for _ in range(3)]
    await asyncio.sleep(0)
    await outbox.close()
    await asyncio.wait_for(asyncio.gather(*waiting), 1)
    await outbox.put(load(2))
    assert len(outbox) == 0
    assert await outbox.next() is None


async def test_a_reader_waits_for_the_next_message() -> None:
    outbox = Outbox()
    reading = asyncio.ensure_future(outbox.next())
    await asyncio.sleep(0)
    outbox.post(load(7))
    assert await asyncio.wait_for(reading, 1) == load(7)
    reading = asyncio.ensure_future(outbox.next())
    await asyncio.sleep(0)
    await outbox.close()
    assert await asyncio.wait_for(reading, 1) is None


async def test_an_end_lets_what_waits_be_written_first() -> None:
    outbox = Outbox()
    outbox.post(load(1))
    outbox.end()
    assert await outbox.next() == load(1)
    assert await outbox.next() is None
