"""The policy by example: who runs, on what, and who gives way. Any order of events: test_policy."""

from __future__ import annotations

import pytest

from novamesh_engine.blocks import BlockPool
from novamesh_engine.errors import IntegrityError, QueueFullError
from novamesh_engine.prefix_cache import PrefixCache
from novamesh_engine.request import Request, SamplingParams
from novamesh_engine.scheduler import Chunk, Scheduler
from novamesh_engine.sequence import Sequence
from novamesh_proto.errors import Code
from support.watched import watched


def sequence(arrival: int, tokens: int, scope: bytes = b"") -> Sequence:
    request = Request(f"r{arrival}", (7,) * tokens, SamplingParams(), (), scope)
    return Sequence(request, arrival, 0)


def scheduler_of(
    blocks: int, size: int, running: int = 4, waiting: int = 4, step_tokens: int = 64
) -> Scheduler:
    cache = PrefixCache(size)
    return Scheduler(BlockPool(blocks, size), cache, running, waiting, step_tokens)


def spans(chunks: tuple[Chunk, ...]) -> list[tuple[str, int, int]]:
    return [(chunk.sequence.id, chunk.start, chunk.count) for chunk in chunks]


def advance(scheduler: Scheduler) -> tuple[Chunk, ...]:
    """One step in which every last chunk gets a token."""
    chunks = scheduler.schedule()
    lasts = [chunk.sequence for chunk in chunks if chunk.last]
    scheduler.settle(chunks)
    for one in lasts:
        one.append(9, 0)
    scheduler.check_integrity()
    return chunks


def test_a_long_prompt_is_prefilled_in_chunks_behind_decoding() -> None:
    scheduler = watched(scheduler_of(32, 4, step_tokens=8))
    scheduler.add(sequence(0, 3))
    assert spans(advance(scheduler)) == [("r0", 0, 3)]
    scheduler.add(sequence(1, 12))
    assert spans(advance(scheduler)) == [("r0", 3, 1), ("r1", 0, 7)]
    chunks = advance(scheduler)
    assert spans(chunks) == [("r0", 4, 1), ("r1", 7, 5)]
    assert [chunk.last for chunk in chunks] == [True, True]
    assert spans(advance(scheduler)) == [("r0", 5, 1), ("r1", 12, 1)]


def test_nobody_overtakes_the_first_in_the_queue() -> None:
    scheduler = watched(scheduler_of(4, 4))
    scheduler.add(sequence(0, 8))
    advance(scheduler)
    scheduler.add(sequence(1, 16))
    scheduler.add(sequence(2, 1))
    assert spans(advance(scheduler)) == [("r0", 8, 1)]
    assert (scheduler.running, scheduler.waiting) == (1, 2)


def test_the_latest_gives_way() -> None:
    scheduler = watched(scheduler_of(5, 4))
    first, second = sequence(0, 7), sequence(1, 7)
    scheduler.add(first)
    scheduler.add(second)
    advance(scheduler)
    assert spans(advance(scheduler)) == [("r0", 7, 1), ("r1", 7, 1)]
    assert spans(advance(scheduler)) == [("r0", 8, 1)]  # five blocks: one third page, not two
    assert (scheduler.preemptions, second.computed, second.blocks) == (1, 0, [])
    scheduler.remove(first)
    assert spans(advance(scheduler)) == [("r1", 8, 1)]  # its full pages are still there


def test_a_newcomer_leaves_a_spare_block_to_everyone_who_runs() -> None:
    scheduler = watched(scheduler_of(2, 4))
    scheduler.add(sequence(0, 4))
    scheduler.add(sequence(1, 4))
    assert spans(advance(scheduler)) == [("r0", 0, 4)]  # a block is free, and r0 needs it next
    assert spans(advance(scheduler)) == [("r0", 4, 1)]
    assert scheduler.preemptions == 0


def test_who_gave_way_is_not_let_in_again_at_once() -> None:
    scheduler = watched(scheduler_of(5, 4))
    for arrival in range(2):
        scheduler.add(sequence(arrival, 7))
    for _ in range(2):
        advance(scheduler)
    assert [chunk.sequence.id for chunk in advance(scheduler)] == ["r0"]
    assert scheduler.waiting == 1


def test_who_is_latest_gives_way_itself() -> None:
    scheduler = watched(scheduler_of(4, 4))
    first, second = sequence(0, 5), sequence(1, 4)
    scheduler.add(first)
    scheduler.add(second)
    advance(scheduler)  # the newcomer is let in: one spare block for the one that runs
    assert scheduler.running == 2
    advance(scheduler)
    second_blocks = len(second.blocks)
    for _ in range(3):
        advance(scheduler)
    assert second_blocks == 2
    assert scheduler.preemptions == 1
    assert [one.id for one in scheduler] == ["r0", "r1"]


def test_a_step_that_failed_is_scheduled_again() -> None:
    scheduler = watched(scheduler_of(8, 4))
    scheduler.add(sequence(0, 6))
    assert spans(scheduler.schedule()) == spans(scheduler.schedule()) == [("r0", 0, 6)]


def test_the_queue_has_an_end() -> None:
    scheduler = watched(scheduler_of(8, 4, 1, 2))
    for arrival in range(3):  # one that will run at once, two that wait
        scheduler.add(sequence(arrival, 1))
    with pytest.raises(QueueFullError) as refused:
        scheduler.add(sequence(3, 1))
    assert refused.value.code is Code.BUSY
    assert refused.value.retry_after_ms > 0


def test_a_short_prompt_is_read_at_once_beside_a_long_one() -> None:
    scheduler = watched(scheduler_of(4096, 16, step_tokens=512))
    scheduler.add(sequence(0, 32768))
    for _ in range(3):
        advance(scheduler)
    scheduler.add(sequence(1, 40))
    chunks = advance(scheduler)
    assert spans(chunks) == [("r0", 1536, 472), ("r1", 0, 40)]
    assert chunks[1].last
    assert spans(advance(scheduler)) == [("r1", 40, 1), ("r0", 2008, 511)]


def test_a_known_beginning_is_not_computed_again() -> None:
    scheduler = watched(scheduler_of(32, 4))
    first, second = sequence(0, 10, b"a"), sequence(1, 11, b"a")
    scheduler.add(first)
    assert spans(advance(scheduler)) == [("r0", 0, 10)]
    scheduler.add(second)
    assert spans(advance(scheduler)) == [("r0", 10, 1), ("r1", 8, 3)]
    assert first.blocks[:2] == second.blocks[:2]
    assert not set(first.blocks[2:]) & set(second.blocks[2:])
    assert (scheduler.prefix_hits, scheduler.prefix_tokens) == (1, 8)
    scheduler.remove(first)
    scheduler.check_integrity()
    assert scheduler.pool.free == 32 - len(second.blocks)


def test_whoever_shares_no_scope_shares_no_block() -> None:
    scheduler = watched(scheduler_of(32, 4))
    for arrival, scope in enumerate((b"a", b"b", b"", b"")):
        scheduler.add(sequence(arrival, 10, scope))
        assert spans(advance(scheduler))[-1] == (f"r{arrival}", 0, 10)
    assert scheduler.prefix_hits == 0


def test_what_ended_is_found_until_its_blocks_are_needed() -> None:
    scheduler = watched(scheduler_of(8, 4))
    first = sequence(0, 13, b"a")
    scheduler.add(first)
    advance(scheduler)
    scheduler.remove(first)
    assert scheduler.pool.free == 8
    again = sequence(1, 13, b"a")
    scheduler.add(again)
    assert spans(advance(scheduler)) == [("r1", 12, 1)]
    scheduler.remove(again)
    scheduler.add(sequence(2, 24, b"b"))  # takes six of eight: the ends of what is kept go first
    advance(scheduler)
    scheduler.remove(next(iter(scheduler)))
    scheduler.add(sequence(3, 13, b"a"))
    assert spans(advance(scheduler)) == [("r3", 8, 5)]


def test_who_gave_way_goes_on_from_what_is_still_there() -> None:
    scheduler = watched(scheduler_of(9, 4))
    first, second = sequence(0, 15), sequence(1, 15)
    scheduler.add(first)
    scheduler.add(second)
    while not scheduler.preemptions:
        advance(scheduler)
    assert (second.computed, second.blocks, len(second.tokens)) == (0, [], 17)
    scheduler.remove(first)
    assert spans(advance(scheduler)) == [("r1", 16, 1)]


def test_nobody_finds_what_an_unsound_sequence_computed() -> None:
    scheduler = watched(scheduler_of(32, 4))
    bad = sequence(0, 10, b"a")
    scheduler.add(bad)
    advance(scheduler)
    scheduler.remove(bad, sound=False)
    scheduler.add(sequence(1, 10, b"a"))
    assert spans(advance(scheduler)) == [("r1", 0, 10)]


def test_a_newcomer_is_not_let_in_for_blocks_that_only_seem_free() -> None:
    scheduler = watched(scheduler_of(5, 4))
    one = sequence(0, 9, b"a")
    scheduler.add(one)
    advance(scheduler)
    scheduler.remove(one)  # two of five free blocks are worth keeping
    scheduler.add(sequence(1, 11, b"b"))  # takes the other three
    advance(scheduler)
    scheduler.add(sequence(2, 9, b"a"))  # finds its two, and there is no third
    assert spans(advance(scheduler)) == [("r1", 11, 1)]
    assert scheduler.waiting == 1


def test_nothing_queued_is_nothing_to_do() -> None:
    assert watched(scheduler_of(8, 4, 1, 1)).schedule() == ()


@pytest.mark.parametrize("damage", ["order", "waiting", "blocks", "complete", "many"])
def test_integrity_sees_damage(damage: str) -> None:
    scheduler = scheduler_of(16, 4, 2, 8)
    first, second, third = (sequence(arrival, 6) for arrival in range(3))
    for one in (first, second, third):
        scheduler.add(one)
    advance(scheduler)
    if damage == "order":
        first.arrival = 5
    elif damage == "waiting":
        third.computed = 1
    elif damage == "blocks":
        first.blocks += scheduler.pool.allocate(2)
    elif damage == "complete":
        first.computed = len(first.tokens)
    else:
        scheduler._running.append(scheduler._waiting.popleft())
    with pytest.raises(IntegrityError):
        scheduler.check_integrity()
