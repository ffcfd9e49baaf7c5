"""Deliberate bugs, each a patch of production code, and the sentence that must give it away.

They are what a careless change might do: an effect that leaves too early, a check that is gone, a
field that is forgotten. A simulator that finds none of them proves nothing, and one that finds them
only because something fell over proves little: the promise that is broken must be named. What a
seed once found in production is kept here too: seeds mean other worlds when the simulator changes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import pytest

from novamesh.reader import AnswerReader
from novamesh.received import ReceivedAttempt
from novamesh_coordinator import clearing
from novamesh_coordinator.clearing import Clearing
from novamesh_coordinator.core import Core
from novamesh_coordinator.desk import Desk
from novamesh_coordinator.dispatcher import DEADLINE, LEASE, Dispatcher
from novamesh_coordinator.events import AttemptEnded, AttemptSettled, JobAdmitted, JobEnded
from novamesh_coordinator.floor import Floor
from novamesh_coordinator.high_water import HighWater
from novamesh_coordinator.jobs import Jobs
from novamesh_coordinator.ledger import Ledger
from novamesh_coordinator.registry import Registry
from novamesh_coordinator.relay import Stream
from novamesh_coordinator.sequencer import Sequencer
from novamesh_coordinator.snapshot_parts import Encoder, Run
from novamesh_coordinator.watch import Follower
from novamesh_node import desk as node_desk
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
    recover = Dispatcher.recover

    def forget(self: Dispatcher, job: Any, now: Any, network: str) -> None:
        recover(self, job, now, network)
        for kind in (LEASE, DEADLINE):
            self._timers.drop((kind, job.job))

    patch.setattr(Dispatcher, "recover", forget)


def time_runs_nothing_out(patch: Patch) -> None:
    """Leases and deadlines are never looked at."""
    patch.setattr(Dispatcher, "tick", lambda self, turn: None)


def _without_guards(patch: Patch) -> None:
    """The table of jobs takes what it is told; only then is it the log that must give it away."""
    apply, change = Jobs.apply, Jobs._change

    def take(self: Jobs, record: Any) -> Any:
        if isinstance(record, JobAdmitted) and (known := self.get(record.job)) is not None:
            return known
        return apply(self, record)

    def let_be(self: Jobs, job: Any, record: Any) -> Any:
        ended = isinstance(record, JobEnded) and job.state.terminal
        settled = isinstance(record, AttemptSettled) and job.settled
        return job if ended or settled else change(self, job, record)

    patch.setattr(Jobs, "apply", take)
    patch.setattr(Jobs, "_change", let_be)


def the_same_terms_are_admitted_again(patch: Patch) -> None:
    """Submission is not idempotent."""
    submit = Desk.submit

    def again(self: Desk, turn: Any, asked: Any) -> Any:
        known = self._jobs.get(asked.terms.id)
        if known is not None:
            self._admit(turn, asked, known.root)
        return submit(self, turn, asked)

    _without_guards(patch)
    patch.setattr(Desk, "submit", again)


def a_job_ends_again(patch: Patch) -> None:
    """A cancel is carried out whatever the job's state is."""

    def cancel(self: Desk, turn: Any, asked: Any) -> Any:
        job = self._own(asked.order.issuer, asked.order.message.job)
        self._dispatcher.cancel(turn, job, asked.order)
        return self.view(self._job(job.job))

    _without_guards(patch)
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

    _without_guards(patch)
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


def a_snapshot_of_what_is_not_written(patch: Patch) -> None:
    """The state is kept for a place in the log that it is ahead of."""
    patch.setattr(Sequencer, "_settled", True)


def a_run_that_changed_keeps_its_name(patch: Patch) -> None:
    """What a snapshot was made of is taken for what it is made of now."""

    def keep(self: Encoder, run: Run) -> bytes | None:
        written: tuple[Any, bytes] | None = self._before.get((run.table, run.start))
        if written is None or not run.items:
            return None
        self.written[run.table, run.start] = written
        return written[1]

    patch.setattr(Encoder, "keep", keep)


def the_mark_is_never_written(patch: Patch) -> None:
    """Nobody knows how far the log must go."""
    patch.setattr(HighWater, "write", lambda self, mark: None)


def a_late_claim_is_settled(patch: Patch) -> None:
    """What comes from an old fence counts."""

    def believe(self: Floor, turn: Any, job: Any, said: Any) -> None:
        stream = self._relay.get(job.job)
        if stream is not None and job.state.terminal and not job.settled:
            self._dispatcher.settle_part(turn, job, stream, said.attestation)

    patch.setattr(Floor, "_keep_late", believe)


def a_continuation_is_paid_from_its_start(patch: Patch) -> None:
    """What an earlier part of the answer was paid for is forgotten."""
    patch.setattr(Ledger, "paid_until", lambda self, root: 0)


def the_last_token_is_not_paid(patch: Patch) -> None:
    """A bound is off by one."""
    settle = clearing.settlement.settle

    def short(work: Any) -> Any:
        paid = settle(work)
        return replace(paid, completion_tokens=max(0, paid.completion_tokens - 1))

    patch.setattr(clearing.settlement, "settle", short)


def what_ran_out_of_time_is_not_claimed(patch: Patch) -> None:
    """A node falls silent where it should say what it did; it once did so."""
    patch.setattr(node_desk, "_COUNTS", frozenset({Code.CANCELLED.value}))


def an_error_that_quotes_the_prompt(patch: Patch) -> None:
    """A refusal that means to be helpful, and goes through the pool."""
    build = node_desk.build_request

    def helpful(name: str, terms: Any, body: Any, prompt: Any, shape: Any) -> Any:
        if terms.sampling.max_tokens % 5 == 0:
            text = body.chat.messages[0].content
            raise NovaMeshError(Code.TOO_LARGE, f"too many tokens for {text!r}")
        return build(name, terms, body, prompt, shape)

    patch.setattr(node_desk, "build_request", helpful)


def a_restart_forgets_what_was_delivered(patch: Patch) -> None:
    """An attempt of which the client holds a part is begun anew; it once was."""
    patch.setattr(Stream, "started", property(lambda self: self.chain.chunks > 0))


def a_resumed_stream_is_sealed_anew(patch: Patch) -> None:
    """What is sent again is another text under the same key."""
    since = Tail.since

    def anew(self: Tail, chunk: int) -> Any:
        return tuple(_other_text(message) for message in since(self, chunk))

    patch.setattr(Tail, "since", anew)


def _other_text(message: Any) -> Any:
    if message.chunk is None:
        return message
    sealed = message.chunk.chunk
    other = replace(sealed, ciphertext=sealed.ciphertext[::-1])
    return replace(message, chunk=replace(message.chunk, chunk=other))


@dataclass(frozen=True)
class Sabotage:
    """A bug, a part of the sentence that tells of it, and a seed near which that is heard.

    `direct` where it takes direct paths to be heard.
    """

    bug: Bug
    finds: str
    near: int = 0
    direct: bool = False


SABOTAGES: Final = (
    Sabotage(effects_leave_before_the_commit, "that is not on its disk"),
    Sabotage(nobody_is_ever_matched, "all is well, and client-"),
    Sabotage(a_failed_commit_keeps_its_state, "the log gives another state", 12),
    Sabotage(replay_forgets_an_event, "the log gives another state", 4),
    Sabotage(an_unlogged_change, "the log gives another state"),
    Sabotage(recovery_sets_no_lease, "s too late", 61),
    Sabotage(time_runs_nothing_out, "has not ended", 30),
    Sabotage(the_same_terms_are_admitted_again, "was admitted twice", 3),
    Sabotage(a_job_ends_again, "ended 2 times", 4),
    Sabotage(claims_are_paid_as_claimed, "were relayed", 1),
    Sabotage(a_settled_attempt_is_settled_again, "were paid twice"),
    Sabotage(a_continuation_is_paid_from_its_start, "were paid twice", 10),
    Sabotage(a_late_claim_is_settled, "was settled by a claim of something else", 11),
    Sabotage(the_last_token_is_not_paid, "tokens that nobody had paid, and was paid"),
    Sabotage(what_ran_out_of_time_is_not_claimed, "sent a part of an answer and was not paid"),
    Sabotage(the_relay_counts_one_less, "names another chain than the other parts"),
    Sabotage(a_resumed_stream_skips_a_chunk, "is honest, and the log says", 6),
    Sabotage(a_watcher_misses_a_chunk, "everybody is honest, and client-", 6),
    Sabotage(the_reader_asks_from_the_wrong_chunk, "everybody is honest, and client-", 6),
    Sabotage(a_receipt_without_its_attestation, "does not verify"),
    Sabotage(pieces_come_twice, "got tokens"),
    Sabotage(a_snapshot_of_what_is_not_written, "is not the state that the log gives", 209),
    Sabotage(a_run_that_changed_keeps_its_name, "is not the state that the log gives", 2),
    Sabotage(the_mark_is_never_written, "pool starts on a disk with", 3),
    Sabotage(an_error_that_quotes_the_prompt, "something that everybody can read"),
    Sabotage(a_restart_forgets_what_was_delivered, "everybody is honest, and client-", 134),
    Sabotage(a_resumed_stream_is_sealed_anew, "used one chunk key twice", 6),
)
