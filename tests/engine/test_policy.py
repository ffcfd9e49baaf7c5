"""The scheduler and the prefix cache under any order of events, beside a plain model of the pages.

The model writes down, for every slot of the cache, which tokens were computed up to there, and
spoils what a failed step may have touched. So whatever is shared, kept, thrown out or computed
again, a sequence must find under its block table exactly its own beginning.
"""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from novamesh_engine.blocks import BlockPool
from novamesh_engine.errors import QueueFullError
from novamesh_engine.prefix_cache import PrefixCache
from novamesh_engine.request import Request, SamplingParams
from novamesh_engine.scheduler import Chunk, Scheduler
from novamesh_engine.sequence import Sequence

SCOPES = (b"", b"a", b"a", b"b")
Page = tuple[Any, ...]


class Pages:
    """What is in each slot: all tokens up to it, and whose they are; None if nobody knows."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.slots: dict[int, Page | None] = {}

    def write(self, chunk: Chunk) -> None:
        for at in range(chunk.start, chunk.start + chunk.count):
            self.slots[self._slot(chunk.sequence, at)] = self._page(chunk.sequence, at)

    def spoil(self, chunk: Chunk) -> None:
        for at in range(chunk.start, chunk.start + chunk.count):
            self.slots[self._slot(chunk.sequence, at)] = None

    def check(self, one: Sequence, length: int) -> None:
        for at in range(length):
            assert self.slots[self._slot(one, at)] == self._page(one, at)

    def _slot(self, one: Sequence, at: int) -> int:
        return one.blocks[at // self.size] * self.size + at % self.size

    def _page(self, one: Sequence, at: int) -> Page:
        return (one.scope or one.id, one.regime, *one.tokens[: at + 1])


class Policy(RuleBasedStateMachine):
    """Any order of submitting, stepping, failing, shedding and aborting; blocks are few."""

    def __init__(self) -> None:
        super().__init__()
        self.arrivals = 0
        self.left: dict[str, int] = {}

    @initialize(
        blocks=st.integers(2, 14), size=st.integers(1, 5), running=st.integers(1, 4),
        extra=st.integers(0, 9), enabled=st.sampled_from([True, True, False]),
    )  # fmt: skip
    def start(self, blocks: int, size: int, running: int, extra: int, enabled: bool) -> None:
        self.step_tokens, self.max_running = running + extra, running
        self.pages = Pages(size)
        self.scheduler = Scheduler(
            BlockPool(blocks, size), PrefixCache(size, enabled), running, 3, self.step_tokens
        )

    @rule(
        same=st.integers(0, 16), other=st.lists(st.integers(7, 8), min_size=1, max_size=6),
        answer=st.integers(1, 12), scope=st.sampled_from(SCOPES), regime=st.integers(0, 1),
    )  # fmt: skip
    def submit(self, same: int, other: list[int], answer: int, scope: bytes, regime: int) -> None:
        slots = self.scheduler.pool.slots
        tokens = ((7,) * same + tuple(other))[: slots - 1]
        request = Request(f"r{self.arrivals}", tokens, SamplingParams(), (), scope)
        one = Sequence(request, self.arrivals, 0, regime)
        try:
            self.scheduler.add(one)
        except QueueFullError:
            assert self.scheduler.waiting >= 3
            return
        self.arrivals += 1
        self.left[one.id] = min(answer, slots - len(one.tokens))

    @rule()
    def fail(self) -> None:
        """A step that raised may have written anything where it was to write."""
        for chunk in self.scheduler.schedule():
            self.pages.spoil(chunk)

    @precondition(lambda self: self.left)
    @rule(sound=st.booleans())
    def shed(self, sound: bool) -> None:
        """A step for whose newest sequence there was no memory."""
        chunks = self.scheduler.schedule()
        for chunk in chunks:
            self.pages.spoil(chunk)
        newest = max((chunk.sequence for chunk in chunks), key=lambda one: one.arrival)
        self._remove(newest, sound)

    @rule()
    def step(self) -> None:
        chunks = self.scheduler.schedule()
        self._check(chunks)
        for chunk in chunks:
            self.pages.write(chunk)
        for chunk in chunks:
            self.pages.check(chunk.sequence, chunk.start + chunk.count)
        lasts = [chunk.sequence for chunk in chunks if chunk.last]
        self.scheduler.settle(chunks)
        for one in lasts:
            one.append(7 + one.position % 2, 0)
            self.left[one.id] -= 1
            if not self.left[one.id]:
                self._remove(one)

    def _check(self, chunks: tuple[Chunk, ...]) -> None:
        assert bool(chunks) == bool(self.left), "there was work, and nobody got any"
        assert sum(chunk.count for chunk in chunks) <= self.step_tokens
        ids = [chunk.sequence.id for chunk in chunks]
        assert len(set(ids)) == len(ids) == self.scheduler.running <= self.max_running
        reading = [chunk for chunk in chunks if chunk.sequence.pending > 1]
        decoding = len(chunks) - len(reading)
        for chunk in chunks:
            assert chunk.start == chunk.sequence.computed
            room = len(chunk.sequence.blocks) * self.scheduler.pool.block_size
            assert chunk.start + chunk.count <= room
            fair = max(1, (self.step_tokens - decoding) // 2 // max(1, len(chunks)))
            assert chunk.count >= min(chunk.sequence.pending, fair)

    @precondition(lambda self: self.left)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        self._remove(data.draw(st.sampled_from(list(self.scheduler))))

    def _remove(self, one: Sequence, sound: bool = True) -> None:
        self.scheduler.remove(one, sound)
        del self.left[one.id]

    @invariant()
    def books_agree(self) -> None:
        if hasattr(self, "scheduler"):
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


Policy.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestPolicy = Policy.TestCase


@given(
    prompts=st.lists(st.integers(1, 400), min_size=1, max_size=12),
    running=st.integers(1, 6), extra=st.integers(0, 500), answer=st.integers(1, 30),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_no_prompt_starves(prompts: list[int], running: int, extra: int, answer: int) -> None:
    """From admission to the first token: at most so many steps, whoever else is there."""
    step_tokens = running + extra
    scheduler = Scheduler(BlockPool(100, 64), PrefixCache(64), running, 12, step_tokens)
    for arrival, tokens in enumerate(prompts):
        request = Request(f"r{arrival}", (7,) * tokens, SamplingParams())
        scheduler.add(Sequence(request, arrival, 0))
    seen: dict[str, int] = {}
    decoding: set[str] = set()
    part = max(1, (step_tokens - (running - 1)) // 2 // running)
    while chunks := scheduler.schedule():
        assert decoding <= {chunk.sequence.id for chunk in chunks}, "whoever decodes never waits"
        scheduler.settle(chunks)
        for chunk in chunks:
            one = chunk.sequence
            seen[one.id] = seen.get(one.id, 0) + 1
            if chunk.last:
                if not one.position:
                    assert seen[one.id] <= -(-one.prompt_count // part)
                one.append(9, 0)
                decoding.add(one.id)
                if one.position == answer:
                    decoding.discard(one.id)
                    scheduler.remove(one)
    assert len(seen) == len(prompts)
