"""Which sequences run in the next step, and on how many of their tokens: policy without torch.

Continuous batching: a step mixes decoding sequences (one token each) with chunks of prefills.
Rules, in this order: whoever decodes is in every step; what is left of the step's tokens is divided
fairly between all prompts that are being read (fair_share.py), so that each of p of them advances
by at least max(1, (max_step_tokens - decoding) // 2 // p) tokens in every step. Sequences are
admitted in order of arrival, and nobody overtakes: each with all the blocks its known tokens need,
except those that the prefix cache finds computed already, and while decoding it takes one more at a
time. When blocks run out, the latest arrival gives all of its back and is computed again later, but
for what of it is still in the cache by then. The earliest always advances, because a request that
does not fit the pool alone is refused before it gets here.
It does not know logits, text or time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from novamesh_engine.blocks import BlockPool
from novamesh_engine.errors import IntegrityError, QueueFullError
from novamesh_engine.fair_share import divide
from novamesh_engine.prefix_cache import PrefixCache
from novamesh_engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens [start, start + count) of a sequence, to be computed in this step.

    `last` says that they reach the sequence's end, so that a new token follows.
    """

    sequence: Sequence
    start: int
    count: int
    last: bool


class Scheduler:
    """The one owner of who waits, who runs and who holds which block.

    `max_step_tokens` is at least `max_running`, so that everybody who runs advances.
    """

    def __init__(
        self,
        pool: BlockPool,
        cache: PrefixCache,
        max_running: int,
        max_waiting: int,
        max_step_tokens: int,
    ) -> None:
        self.pool = pool
        self.cache = cache
        self.preemptions = 0
        self.prefix_hits = 0
        self.prefix_tokens = 0
        self._max_running = max_running
        self._max_waiting = max_waiting
        self._max_step_tokens = max_step_tokens
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []

    @property
    def waiting(self) -> int:
        """Sequences that hold no blocks yet, or no longer."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Sequences that hold blocks."""
        return len(self._running)

    def __iter__(self) -> Iterator[Sequence]:
        """Every sequence, in order of arrival."""
        yield from self._running
        yield from self._waiting

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence. Raises: QueueFullError.

        What would be admitted in the next step does not count as waiting, so `max_waiting` 0 still
        serves.
        """
        room = self._max_waiting + self._max_running - self.running
        if self.waiting >= room:
            raise QueueFullError(self.waiting)
        self._waiting.append(sequence)

    def remove(self, sequence: Sequence, sound: bool = True) -> None:
        """Forget a sequence that ended, wherever it is, and free its blocks.

        Nobody gets what one that is not `sound` computed.
        """
        if sequence in self._running:
            self._running.remove(sequence)
            if not sound:
                self.cache.forget(sequence.blocks)
            self._release(sequence)
        else:
            self._waiting.remove(sequence)

    def schedule(self) -> tuple[Chunk, ...]:
        """Choose the next step's chunks; empty only when nothing is queued.

        Blocks are taken here, but nothing more counts as computed before `settle`: a step that
        failed is simply scheduled again.
        """
        reading = [sequence for sequence in self._running if sequence.pending > 1]
        chunks = self._decode()
        reading = [sequence for sequence in reading if sequence.blocks] + self._admit()
        parts = divide([one.pending for one in reading], self._max_step_tokens - len(chunks))
        chunks += [_chunk(*pair) for pair in zip(reading, parts, strict=True)]
        return tuple(chunk for chunk in chunks if chunk.count)

    def settle(self, chunks: tuple[Chunk, ...]) -> None:
        """Record that the chunks' keys and values are in the cache."""
        for chunk in chunks:
            chunk.sequence.computed += chunk.count
            self.cache.record(chunk.sequence, chunk.start)

    def _decode(self) -> list[Chunk]:
        chunks: list[Chunk] = []
        for sequence in tuple(self._running):
            # A sequence that gave way is computed from its start: no longer one token.
            if sequence.pending == 1 and sequence in self._running and self._grow(sequence):
                chunks.append(_chunk(sequence, 1))
        return chunks

    def _grow(self, sequence: Sequence) -> bool:
        """Give a decoding sequence the block it lacks; False if it had to give way itself."""
        missing = self.pool.needed(len(sequence.tokens)) - len(sequence.blocks)
        while self.pool.free < missing:
            latest = self._running[-1]
            self._preempt(latest)
            if latest is sequence:
                return False
        sequence.blocks += self._take(max(missing, 0))
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        self._release(sequence)
        sequence.computed = 0
        self._waiting.appendleft(sequence)
        self.preemptions += 1

    def _admit(self) -> list[Sequence]:
        """Let in who waits, as long as there is room; who was let in."""
        admitted: list[Sequence] = []
        while self._waiting and self.running < self._max_running:
            sequence = self._waiting[0]
            known = self.cache.find(sequence)
            fresh = self.pool.needed(len(sequence.tokens)) - len(known)
            # A spare block for everyone who runs, or the newcomer would soon be thrown out. Who
            # just gave way needs what it gave and does not get it: a block of that is taken.
            if self.pool.free < fresh + self.pool.unheld(known) + self.running:
                break
            self.pool.share(known)  # before others are taken, or they could be these
            sequence.blocks = known + self._take(fresh)
            sequence.computed = len(known) * self.pool.block_size
            self.prefix_hits += bool(known)
            self.prefix_tokens += sequence.computed
            self._running.append(self._waiting.popleft())
            admitted.append(sequence)
        return admitted

    def _take(self, count: int) -> list[int]:
        taken = self.pool.allocate(count)
        self.cache.forget(taken)
        return taken

    def _release(self, sequence: Sequence) -> None:
        self.pool.release(sequence.blocks, keep=self.cache)
        sequence.blocks = []

    def check_integrity(self) -> None:
        """Compare the books with themselves. Raises: IntegrityError."""
        self.pool.check_integrity(sequence.blocks for sequence in self)
        self.cache.check_integrity(self)
        if any(one.arrival >= other.arrival for one, other in pairwise(self)):
            raise IntegrityError("sequences are out of the order of their arrival")
        if self.running > self._max_running:
            raise IntegrityError("more sequences run than may run")
        if any(sequence.blocks or sequence.computed for sequence in self._waiting):
            raise IntegrityError("a waiting sequence holds blocks")
        for sequence in self._running:
            held, most = len(sequence.blocks), self.pool.needed(len(sequence.tokens))
            if not self.pool.needed(sequence.computed) <= held <= most:
                raise IntegrityError("a running sequence holds too few or too many blocks")
            if not 0 <= sequence.computed < len(sequence.tokens):
                raise IntegrityError("a running sequence has nothing left to compute")


def _chunk(sequence: Sequence, budget: int) -> Chunk:
    count = min(sequence.pending, budget)
    return Chunk(sequence, sequence.computed, count, last=count == sequence.pending)
