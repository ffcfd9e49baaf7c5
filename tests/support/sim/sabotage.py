"""Deliberate bugs, each a patch of production code that the simulator must find.

They are what a careless change might do: an effect that leaves too early, a check that is gone, a
field that is forgotten. A simulator that finds none of them proves nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import pytest

from novamesh.reader import AnswerReader
from novamesh.received import ReceivedAttempt
from novamesh_coordinator import clearing
from novamesh_coordinator.clearing import Clearing
from novamesh_coordinator.core import Core
from novamesh_coordinator.desk import Desk
from novamesh_coordinator.dispatcher import Dispatcher
from novamesh_coordinator.events import AttemptEnded
from novamesh_coordinator.floor import Floor
from novamesh_coordinator.ledger import Ledger
from novamesh_coordinator.registry import Registry
from novamesh_coordinator.sequencer import Sequencer
from novamesh_coordinator.watch import Follower
from novamesh_node.tail import Tail
from novamesh_proto.errors import Code, NovaMeshError

Patch = pytest.MonkeyPatch
Bug = Callable[[Patch], None]


def effects_leave_before_the_commit(patch: Patch) -> None:
    """Others act on what the disk does not know yet."""
    step = Sequencer._step

    def early(self: Sequencer, event: Any) -> Any:
        outcome = step(self, event)
        self._release(outcome)
        return replace(outcome, effects=())

    patch.setattr(Sequencer, "_step", early)


def nobody_is_ever_matched(patch: Patch) -> None:
    """A pool that refuses everything breaks no other promise."""

    def full(self: Registry, turn: Any, client: Any, query: Any) -> Any:
        raise NovaMeshError(Code.BUSY, "the pool is full", "try again", 500)

    patch.setattr(Registry, "match", full)


def a_failed_commit_keeps_its_state(patch: Patch) -> None:
    """The core goes on with what was never written."""

    async def keep(self: Sequencer) -> None:
        self._ready.set()

    patch.setattr(Sequencer, "_rebuild", keep)


def replay_forgets_an_event(patch: Patch) -> None:
    """An event is decided and not read back."""
    replay = Core.replay
    patch.setattr(
        Core,
        "replay",
        lambda self, records: replay(
            self, (r for r in records if not isinstance(r, AttemptEnded) or r.attempt > 1)
        ),
    )


def an_unlogged_change(patch: Patch) -> None:
    """State that no record tells of."""
    detach = Floor.detach

    def lose(self: Floor, turn: Any, gone: Any) -> None:
        self._dispatcher._ledger.jobs_settled += 1
        detach(self, turn, gone)

    patch.setattr(Floor, "detach", lose)


def recovery_sets_no_lease(patch: Patch) -> None:
    """After a restart nobody watches the live jobs."""
    patch.setattr(Core, "recover", lambda self, now: None)


def time_runs_nothing_out(patch: Patch) -> None:
    """Leases and deadlines are never looked at."""
    patch.setattr(Dispatcher, "tick", lambda self, turn: None)


def the_same_terms_are_another_job(patch: Patch) -> None:
    """Submission is not idempotent."""
    patch.setattr(Desk, "_known", lambda self, terms: None)


def a_job_ends_again(patch: Patch) -> None:
    """A cancel is carried out whatever the job's state is."""

    def cancel(self: Desk, turn: Any, asked: Any) -> Any:
        job = self._own(asked.order.issuer, asked.order.message.job)
        self._dispatcher.cancel(turn, job, asked.order)
        return self.view(self._job(job.job))

    patch.setattr(Desk, "cancel", cancel)


def claims_are_paid_as_claimed(patch: Patch) -> None:
    """Tokens that nobody relayed are paid."""
    settle = clearing.settlement.settle

    def generous(work: Any) -> Any:
        paid = settle(work)
        claimed = work.attestation.completion_tokens if work.attestation else 0
        return replace(paid, completion_tokens=max(paid.completion_tokens, claimed))

    patch.setattr(clearing.settlement, "settle", generous)


def a_settled_attempt_is_settled_again(patch: Patch) -> None:
    """A claim that comes twice is paid twice."""
    attest = Floor.attest

    def again(self: Floor, turn: Any, said: Any) -> None:
        att = said.attestation.message
        job = self._jobs.get(att.job)
        attest(self, turn, said)
        if job is not None and job.state.terminal and (stream := self._relay.get(att.job)):
            self._dispatcher._settle(turn, job, stream, said.attestation, job.state)

    patch.setattr(Floor, "attest", again)
    patch.setattr(Ledger, "paid_until", lambda self, root: 0)


def the_relay_counts_one_less(patch: Patch) -> None:
    """What the coordinator says it saw is not what it saw."""
    receipt = Clearing._relay_receipt
    patch.setattr(
        Clearing,
        "_relay_receipt",
        lambda self, *args: replace(seen := receipt(self, *args), chunks=max(0, seen.chunks - 1)),
    )


def a_resumed_stream_skips_a_chunk(patch: Patch) -> None:
    """After a reconnect the node goes on one chunk too late."""
    since = Tail.since
    patch.setattr(Tail, "since", lambda self, chunk: since(self, chunk + 1))


def a_watcher_misses_a_chunk(patch: Patch) -> None:
    """Whoever comes back is told one chunk too few."""
    patch.setattr(Follower, "_held", lambda self, index: index <= self._query.from_chunk > 0)


def the_reader_asks_from_the_wrong_chunk(patch: Patch) -> None:
    """A broken watch is resumed behind its place."""
    patch.setattr(
        AnswerReader,
        "chunks",
        property(lambda self: self._attempt.opener.chunks + 1 if self._attempt else 0),
    )


def a_receipt_without_its_attestation(patch: Patch) -> None:
    """What is kept does not prove itself."""
    receipt = AnswerReader._receipt
    patch.setattr(
        AnswerReader,
        "_receipt",
        lambda self, attempt: replace(receipt(self, attempt), attestation=None, checkpoint=None),
    )


def pieces_come_twice(patch: Patch) -> None:
    """The caller gets a chunk's tokens again."""
    take = ReceivedAttempt.take_chunk

    def stutter(self: ReceivedAttempt, chunk: Any, at_us: int) -> Any:
        piece = take(self, chunk, at_us)
        again = chunk.index % 4 == 3
        return replace(piece, token_ids=piece.token_ids * 2) if again else piece

    patch.setattr(ReceivedAttempt, "take_chunk", stutter)


BUGS: Final[tuple[Bug, ...]] = (
    effects_leave_before_the_commit,
    nobody_is_ever_matched,
    a_failed_commit_keeps_its_state,
    replay_forgets_an_event,
    an_unlogged_change,
    recovery_sets_no_lease,
    time_runs_nothing_out,
    the_same_terms_are_another_job,
    a_job_ends_again,
    claims_are_paid_as_claimed,
    a_settled_attempt_is_settled_again,
    the_relay_counts_one_less,
    a_resumed_stream_skips_a_chunk,
    a_watcher_misses_a_chunk,
    the_reader_asks_from_the_wrong_chunk,
    a_receipt_without_its_attestation,
    pieces_come_twice,
)
