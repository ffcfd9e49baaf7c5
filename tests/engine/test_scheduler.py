"""The policy by example, and its invariants under any order of events (a state machine)."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from novamesh_engine.blocks import BlockPool
from novamesh_engine.errors import IntegrityError, QueueFullError
from novamesh_engine.request import Request, SamplingParams
from novamesh_engine.scheduler import Chunk, Scheduler
from novamesh_engine.sequence import Sequence
from novamesh_proto.errors import Code


def sequence(arrival: int, tokens: int) -> Sequence:
    return Sequence(Request(f"r{arrival}", (7,) * tokens, SamplingParams()), arrival, 0)


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
    scheduler = Scheduler(BlockPool(32, 4), 4, 4, 8)
    scheduler.add(sequence(0, 3))
    assert spans(advance(scheduler)) == [("r0", 0, 3)]
    scheduler.add(sequence(1, 12))
    assert spans(advance(scheduler)) == [("r0", 3, 1), ("r1", 0, 7)]
    chunks = advance(scheduler)
    assert spans(chunks) == [("r0", 4, 1), ("r1", 7, 5)]
    assert [chunk.last for chunk in chunks] == [True, True]
    assert spans(advance(scheduler)) == [("r0", 5, 1), ("r1", 12, 1)]


def test_nobody_overtakes_the_first_in_the_queue() -> None:
    scheduler = Scheduler(BlockPool(4, 4), 4, 4, 64)
    scheduler.add(sequence(0, 8))
    advance(scheduler)
    scheduler.add(sequence(1, 16))
    scheduler.add(sequence(2, 1))
    assert spans(advance(scheduler)) == [("r0", 8, 1)]
    assert (scheduler.running, scheduler.waiting) == (1, 2)


def test_the_latest_gives_way_and_is_computed_again_from_its_start() -> None:
    scheduler = Scheduler(BlockPool(5, 4), 4, 4, 64)
    first, second = sequence(0, 7), sequence(1, 7)
    scheduler.add(first)
    scheduler.add(second)
    advance(scheduler)
    assert spans(advance(scheduler)) == [("r0", 7, 1), ("r1", 7, 1)]
    assert spans(advance(scheduler)) == [("r0", 8, 1)]  # five blocks: one third page, not two
    assert (scheduler.preemptions, second.computed, second.blocks) == (1, 0, [])
    scheduler.remove(first)
    assert spans(advance(scheduler)) == [("r1", 0, 9)]


def test_a_newcomer_leaves_a_spare_block_to_everyone_who_runs() -> None:
    scheduler = Scheduler(BlockPool(2, 4), 4, 4, 64)
    scheduler.add(sequence(0, 4))
    scheduler.add(sequence(1, 4))
    assert spans(advance(scheduler)) == [("r0", 0, 4)]  # a block is free, and r0 needs it next
    assert spans(advance(scheduler)) == [("r0", 4, 1)]
    assert scheduler.preemptions == 0


def test_who_gave_way_is_not_let_in_again_at_once() -> None:
    scheduler = Scheduler(BlockPool(5, 4), 4, 4, 64)
    for arrival in range(2):
        scheduler.add(sequence(arrival, 7))
    for _ in range(2):
        advance(scheduler)
    assert [chunk.sequence.id for chunk in advance(scheduler)] == ["r0"]
    assert scheduler.waiting == 1


def test_who_is_latest_gives_way_itself() -> None:
    scheduler = Scheduler(BlockPool(4, 4), 4, 4, 64)
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
    scheduler = Scheduler(BlockPool(8, 4), 4, 4, 64)
    scheduler.add(sequence(0, 6))
    assert spans(scheduler.schedule()) == spans(scheduler.schedule()) == [("r0", 0, 6)]


def test_the_queue_has_an_end() -> None:
    scheduler = Scheduler(BlockPool(8, 4), 1, 2, 64)
    for arrival in range(3):  # one that will run at once, two that wait
        scheduler.add(sequence(arrival, 1))
    with pytest.raises(QueueFullError) as refused:
        scheduler.add(sequence(3, 1))
    assert refused.value.code is Code.BUSY
    assert refused.value.retry_after_ms > 0


def test_nothing_queued_is_nothing_to_do() -> None:
    assert Scheduler(BlockPool(8, 4), 1, 1, 64).schedule() == ()


@pytest.mark.parametrize("damage", ["order", "waiting", "blocks", "complete", "many"])
def test_integrity_sees_damage(damage: str) -> None:
    scheduler = Scheduler(BlockPool(16, 4), 2, 8, 64)
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


class Traffic(RuleBasedStateMachine):
    """Any order of submitting, stepping, failing and aborting."""

    def __init__(self) -> None:
        super().__init__()
        self.arrivals = 0
        self.left: dict[str, int] = {}

    @initialize(
        blocks=st.integers(2, 12), size=st.integers(1, 5), running=st.integers(1, 4),
        extra=st.integers(0, 9),
    )  # fmt: skip
    def start(self, blocks: int, size: int, running: int, extra: int) -> None:
        self.step_tokens, self.max_running = running + extra, running
        self.scheduler = Scheduler(BlockPool(blocks, size), running, 3, self.step_tokens)

    @rule(tokens=st.integers(1, 20), answer=st.integers(1, 12))
    def submit(self, tokens: int, answer: int) -> None:
        slots = self.scheduler.pool.slots
        one = sequence(self.arrivals, min(tokens, slots - 1))
        try:
            self.scheduler.add(one)
        except QueueFullError:
            assert self.scheduler.waiting >= 3
            return
        self.arrivals += 1
        self.left[one.id] = min(answer, slots - len(one.tokens))

    @rule()
    def fail(self) -> None:
        self.scheduler.schedule()

    @rule()
    def step(self) -> None:
        chunks = self.scheduler.schedule()
        self._check(chunks)
        lasts = [chunk.sequence for chunk in chunks if chunk.last]
        self.scheduler.settle(chunks)
        for one in lasts:
            one.append(9, 0)
            self.left[one.id] -= 1
            if not self.left[one.id]:
                self._remove(one)

    def _check(self, chunks: tuple[Chunk, ...]) -> None:
        assert bool(chunks) == bool(self.left), "there was work, and nobody got any"
        assert sum(chunk.count for chunk in chunks) <= self.step_tokens
        ids = [chunk.sequence.id for chunk in chunks]
        assert len(set(ids)) == len(ids) <= self.max_running
        for chunk in chunks:
            assert chunk.count >= 1
            assert chunk.start == chunk.sequence.computed
            room = len(chunk.sequence.blocks) * self.scheduler.pool.block_size
            assert chunk.start + chunk.count <= room
        first = next(iter(self.scheduler), None)
        assert first is None or first.id in ids, "the earliest must always advance"

    @precondition(lambda self: self.left)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        self._remove(data.draw(st.sampled_from(list(self.scheduler))))

    def _remove(self, one: Sequence) -> None:
        self.scheduler.remove(one)
        del self.left[one.id]

    @invariant()
    def books_agree(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        self.scheduler.check_integrity()
        assert {one.id for one in self.scheduler} == set(self.left)

    def teardown(self) -> None:
        """Whatever happened, everything ends, and every block comes home."""
        if not hasattr(self, "scheduler"):
            return
        for _ in range(1000):
            if not self.left:
                break
            self.step()
            self.scheduler.check_integrity()
        assert not self.left
        assert self.scheduler.pool.free == self.scheduler.pool.total


Traffic.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestTraffic = Traffic.TestCase
