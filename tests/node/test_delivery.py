"""Whoever follows and leaves, and whenever: each side gets one chain, and nobody a chunk twice."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from novamesh_node import delivery
from novamesh_node.outbox import OUTBOX_MAX
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import AttachRequest
from support.direct_work import ACK, PROGRESS, RECEIPT, WITNESSES, Work, making, said


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "WITNESS_S", 0.01)


CROWDED = 24_000  # a tail that holds all of 40 chunks, and is half full with 20
STEPS = ("make", "make", "make", "follow", "leave", "attach", "read", "yield")


async def play(steps: list[str], bytes_max: int) -> None:
    work = Work(bytes_max=bytes_max)
    leaving: set[asyncio.Task[None]] = set()
    async with making(work) as orders:
        for step in steps:
            if step == "make":
                orders.put_nowait(False)
            elif step == "leave":
                leaving.add(asyncio.create_task(work.leave()))
            elif step == "follow":
                await work.follow()
            elif step == "attach":
                await work.attach()
            elif step == "read":
                await work.read()
            else:
                await asyncio.sleep(0)
        orders.put_nowait(True)
        if work.outbox is not None:
            leaving.add(asyncio.create_task(work.leave()))
        leaving.add(asyncio.create_task(orders.join()))
        while leaving:
            await work.read()
            leaving = {task for task in leaving if not task.done()}
    await work.delivery.conclude(work.tail)
    await work.read()
    assert work.coordinator == list(range(work.made)), "nobody else is here"
    assert work.claims >= 1
    work.claims = 0
    await work.delivery.conclude(work.tail)
    await work.read()
    assert work.claims == 0


@given(st.lists(st.sampled_from(STEPS), max_size=40), st.sampled_from([1 << 20, CROWDED]))
@settings(max_examples=200, deadline=None)
def test_the_coordinator_gets_one_chain_whenever_a_client_comes_and_leaves(
    steps: list[str], bytes_max: int
) -> None:
    asyncio.run(play(steps, bytes_max))


async def test_while_its_client_is_here_chunks_go_to_it_alone() -> None:
    work = Work()
    await work.make()
    await work.follow()
    await work.make()
    await work.delivery.send((PROGRESS,))
    waiting = [await work.session.next() for _ in range(len(work.session))]
    kinds = [
        "chunk" if m.chunk else "checkpoint" if m.checkpoint else "progress" for m in waiting if m
    ]
    assert kinds == ["chunk", "checkpoint", "checkpoint", "progress"]
    await work.read()
    assert work.client == [0, 1]
    assert work.delivery.direct
    assert work.delivery.followed


async def test_who_comes_later_takes_the_place_and_nobody_waits_for_the_first() -> None:
    """The first one's connection stands still: its outbox is full, and the engine waits."""
    work = Work()
    await work.follow()
    first = work.outbox
    assert first is not None
    for _ in range(OUTBOX_MAX):
        first.post(PROGRESS)
    held = asyncio.create_task(work.make())
    await asyncio.sleep(0)
    assert not held.done()
    await work.follow()
    await asyncio.wait_for(held, 5)
    assert await first.next() is None
    assert work.client == [0]
    await work.delivery.unfollow(first, work.tail)
    assert work.delivery.direct, "who was replaced takes nothing away by leaving"
    await work.make()
    await work.read()
    assert work.client == [0, 1]
    assert work.coordinator == []


async def test_a_client_that_confirms_its_answer_stands_in_the_place_of_the_relay() -> None:
    work = Work()
    await work.follow()
    await work.make()
    await work.make(last=True)
    work.delivery.ack = ACK
    work.delivery.countersign(RECEIPT, confirms=True)
    work.delivery.end()
    await work.delivery.conclude(work.tail)
    await work.read()
    assert (work.coordinator, work.claims, tuple(work.witnesses)) == ([], 1, WITNESSES)
    await work.delivery.conclude(work.tail)
    assert len(work.session) == 0


@pytest.mark.parametrize("denies", [False, True])
async def test_a_part_that_was_signed_for_buys_no_more(denies: bool) -> None:
    """An ack of the first chunk, or a receipt that denies: the coordinator gets every chunk."""
    work = Work()
    await work.follow()
    await work.make()
    work.delivery.ack = ACK
    for _ in range(20):
        await work.make()
    await work.make(last=True)
    if denies:
        work.delivery.countersign(RECEIPT, confirms=False)
    work.delivery.end()
    await work.delivery.conclude(work.tail)
    await work.read()
    assert work.coordinator == list(range(22))
    assert (work.claims, len(work.witnesses)) == (1, 2 if denies else 1)
    work.coordinator.clear()
    await work.attach()
    assert work.coordinator == list(range(22)), "a coordinator that forgot gets them again"


async def test_the_coordinator_never_waits_for_a_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's connection stands still: the lease is renewed, then the relay takes over."""
    monkeypatch.setattr(delivery, "STUCK_S", 0.3)
    work = Work()
    await work.follow()
    first = work.outbox
    assert first is not None
    for _ in range(OUTBOX_MAX):
        first.post(PROGRESS)
    making = asyncio.create_task(work.make())
    await asyncio.sleep(0.05)
    assert (making.done(), len(work.session)) == (False, 1), "the checkpoint went ahead"
    await asyncio.wait_for(making, 5)
    work.outbox = None
    await work.make()
    await work.read()
    assert work.coordinator == [0, 1]
    assert not work.delivery.direct
    assert await first.next() is None
    await work.follow()
    assert work.client == [0, 1], "the client may come again"


async def test_a_client_that_reads_a_drop_at_a_time_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(delivery, "STUCK_S", 0.3)
    work = Work()
    await work.follow()
    drops, work.outbox = work.outbox, None
    assert drops is not None

    async def drip() -> None:
        while True:
            if await drops.next() is None:
                return
            await asyncio.sleep(0.05)

    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks, making(work) as orders:
        tasks.create_task(drip())
        while work.delivery.direct:
            if orders.empty():
                orders.put_nowait(False)
            await work.read()
        while work.coordinator != list(range(work.made)):
            await work.read()
    assert work.coordinator


async def test_work_that_its_coordinator_gave_up_goes_on_for_its_client() -> None:
    """Of it the coordinator hears nothing but the claim, which is evidence."""
    work = Work()
    await work.follow()
    work.delivery.wanted = False
    await work.make()
    await work.delivery.send((PROGRESS,))
    await work.make(last=True)
    assert len(work.session) == 0
    work.delivery.end()
    await work.delivery.conclude(work.tail)
    await work.read()
    assert (work.client, work.coordinator, work.claims) == ([0, 1], [], 1)


async def test_without_a_word_of_its_client_the_coordinator_gets_everything() -> None:
    work = Work()
    await work.follow()
    await work.make()
    await work.make(last=True)
    await work.delivery.conclude(work.tail)
    await work.read()
    assert (work.coordinator, work.claims) == ([0, 1], 1)


async def test_a_claim_is_not_told_before_its_witness_may_have_come() -> None:
    """Else a session that begins in between is told of work that nobody witnessed."""
    work = Work()
    await work.follow()
    await work.make(last=True)
    await work.attach()
    assert work.claims == 0
    work.delivery.countersign(RECEIPT, confirms=True)
    await work.delivery.conclude(work.tail)
    await work.read()
    assert (work.claims, work.witnesses) == (1, [WITNESSES[1]])
    await work.attach()
    assert work.claims == 2, "a new session may not have got it"


async def test_what_the_tail_has_lost_is_no_reason_to_fail() -> None:
    """The coordinator lacks what only the client has: it goes without; the client's word counts."""
    work = Work(bytes_max=1_500)
    await work.follow()
    await work.session.close()  # the coordinator is away meanwhile
    for _ in range(6):
        await work.make(size=256)
    await work.read()
    await work.attach()
    await work.leave()
    await work.make(size=256)
    await work.read()
    assert work.coordinator == []
    backlog, _ = await work.delivery.follow(work.tail, len(work.client))
    assert [m.chunk.chunk.index for m in backlog if m.chunk] == [6]
    await work.make(last=True)
    await work.delivery.conclude(work.tail)
    await work.read()
    assert (work.coordinator, work.claims) == ([], 0)
    with pytest.raises(NovaMeshError) as caught:
        await work.delivery.follow(work.tail, 0)
    assert caught.value.code is Code.STALE


async def test_what_nobody_may_sign_for_is_told_before_the_tail_loses_it() -> None:
    """The client follows a long answer to its end, and then says nothing."""
    work = Work(bytes_max=6_000)
    await work.follow()
    for number in range(60):
        await work.make(size=256, last=number == 59)
        await work.read()
    assert work.tail.size < 60 * 256
    assert work.client == list(range(60))
    work.delivery.end()
    await work.delivery.conclude(work.tail)
    await work.read()
    assert (work.coordinator, work.claims) == (list(range(60)), 1)


async def test_work_without_a_coordinator_waits_for_its_client() -> None:
    work = Work(alone=True)
    assert work.delivery.alone
    await work.make()
    await work.follow()
    await work.make(last=True)
    work.delivery.end()
    await work.read()
    assert work.client == [0, 1]
    await work.delivery.conclude(work.tail)
    await work.leave()
    assert len(work.session) == 0


async def test_a_failure_is_told_to_everybody_and_kept_for_who_comes_late() -> None:
    work, failure = Work(), AttachRequest(failure=said(b"failure"))
    await work.follow()
    assert work.outbox is not None
    work.delivery.post(failure)
    assert await work.outbox.next() is failure
    assert await work.session.next() is failure
    assert work.delivery.last_word is failure


async def test_who_comes_after_the_end_gets_what_there_is_and_then_the_end() -> None:
    work = Work(alone=True)
    await work.make(last=True)
    work.delivery.end()
    await work.follow()
    assert work.client == [0]
    assert work.outbox is not None
    assert await asyncio.wait_for(work.outbox.next(), 5) is None
