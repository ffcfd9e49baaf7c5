"""Attempts: who works on a job, until when, and what happens when that fails.

Rules: one attempt at a time, each with a fence of its own. A lease is LEASE_MS, renewed by
progress, under the job's deadline; of a node whose stream has ended, the lease of what was begun
ends within GONE_MS. A node that vanishes, declines or gives up before its first chunk costs the job
one of ATTEMPTS_MAX attempts, and it goes to another of its candidates; after the first chunk the
job fails where the lease ends, and its client goes on from what it has. What comes from an old
fence is evidence and earns nothing. Leases and deadlines are ticks; whenever this process was away
itself, restarted or frozen, every attempt gets RETURN_MS, so that its node can find its way back,
and what ends before the node was heard again counts against nobody.
"""

from __future__ import annotations

from typing import Any, Final

from novamesh_coordinator.clearing import Clearing, Part
from novamesh_coordinator.effects import Assign, Publish, StopAttempt, Turn
from novamesh_coordinator.events import (
    AttemptAccepted,
    AttemptEnded,
    AttemptSettled,
    JobAssigned,
    JobEnded,
    Moment,
)
from novamesh_coordinator.jobs import Job, Jobs
from novamesh_coordinator.ledger import Ledger
from novamesh_coordinator.registry import Registry
from novamesh_coordinator.relay import Relay, Stream
from novamesh_coordinator.timers import Timers
from novamesh_proto import envelope
from novamesh_proto.envelope import Verified
from novamesh_proto.errors import Code
from novamesh_proto.limits import LEASE_MS, TAIL_KEPT_MS
from novamesh_proto.matching import Request
from novamesh_proto.messages import (
    CancelOrder,
    ChunkCheckpoint,
    Envelope,
    InferenceAttestation,
    JobAssignment,
    JobId,
    JobState,
    JobTerms,
    NodeId,
)

ATTEMPTS_MAX: Final = 2
RETURN_MS: Final = 30_000  # a node that was cut off dials again within 20 s
GONE_MS: Final = 5_000  # one whose stream broke dials again four times in that
AWAY_MS: Final = 3_000  # between two ticks: this process was frozen, or its disk was out
LEASE, DEADLINE, TAIL = 0, 1, 2  # kinds of timers
Due = tuple[int, bytes]


class Dispatcher:
    """Attempts of live jobs, and what is left of ended ones until their tail is gone."""

    def __init__(
        self, clearing: Clearing, jobs: Jobs, registry: Registry, ledger: Ledger, relay: Relay
    ) -> None:
        self._clearing = clearing
        self._jobs = jobs
        self._registry = registry
        self._ledger = ledger
        self._relay = relay
        self._terms: dict[JobId, Verified[JobTerms]] = {}
        self._timers: Timers[Due] = Timers()
        self._unheard: set[JobId] = set()  # attempts of which we heard nothing since we were away
        self._ticked_ms: int | None = None

    def next_ms(self) -> int | None:
        """Ticks before which no lease, deadline or tail runs out."""
        return self._timers.next_ms()

    def start(self, turn: Turn, job: Job, terms: Verified[JobTerms], node: NodeId) -> None:
        """The first attempt of a job that was just admitted."""
        self._terms[job.job] = terms
        self._timers.set((DEADLINE, job.job), turn.now.ticks_ms + job.timeout_ms)
        self._begin(turn, job, node)

    def recover(self, job: Job, now: Moment, network: str) -> None:
        """Take up a live job again after a restart; its node has RETURN_MS to come back."""
        assert job.terms is not None
        terms = envelope.open(job.terms, JobTerms, network=network)
        self._terms[job.job] = terms
        left_ms = min(max(0, job.admitted_ms + job.timeout_ms - now.wall_ms), job.timeout_ms)
        self._timers.set((DEADLINE, job.job), now.ticks_ms + left_ms)
        self._await_return(job.job, now)
        if job.assignment is not None and not self._relay.take_up(job.job, job.fence):
            assignment = envelope.open(job.assignment, JobAssignment, network=network)
            since_us = max(0, now.wall_ms - job.assigned_ms) * 1000
            taken = job.state is JobState.RUNNING
            self._relay.open(assignment, now.ticks_us - since_us, 0, resumed=taken)

    def adopt(self, older: Dispatcher, now: Moment, network: str) -> None:
        """Go on from an older dispatcher whose last decisions were never committed."""
        for job in self._jobs.live():
            self.recover(job, now, network)
        for job_id, terms in older._terms.items():
            known = self._jobs.get(job_id)
            if known is None:
                self._relay.drop(job_id)
            elif known.state.terminal:
                self._terms[job_id] = terms
                self._timers.set((TAIL, job_id), now.ticks_ms + TAIL_KEPT_MS)

    def release(self, job: JobId) -> None:
        """Forget what is kept of a job besides its record."""
        self._terms.pop(job, None)
        self._unheard.discard(job)
        self._relay.drop(job)
        for kind in (LEASE, DEADLINE, TAIL):
            self._timers.drop((kind, job))

    def renew(self, turn: Turn, job: Job) -> None:
        """A sign of progress: the lease begins anew."""
        self._unheard.discard(job.job)
        self._timers.set((LEASE, job.job), turn.now.ticks_ms + LEASE_MS)

    def accept(self, turn: Turn, job: Job, decision: Envelope) -> None:
        """The node took the attempt."""
        if job.state is JobState.ASSIGNED:
            turn.log(AttemptAccepted(job.job, turn.now.wall_ms, job.attempt, job.fence, decision))
            self.publish(turn, job.job)
        self.renew(turn, job)

    def end_attempt(
        self,
        turn: Turn,
        job: Job,
        code: Code,
        message: str,
        *,
        lost: bool,
        evidence: Envelope | None = None,
        told: bool = False,
        same_node: bool = False,
        claim: Verified[InferenceAttestation] | None = None,
    ) -> None:
        """An attempt is over without a result: another node, or the job fails.

        `lost` counts against the node unless we were away ourselves; `told` says that the node
        knows it already, `same_node` that the node itself is as good a candidate as any; `claim` is
        what it attests of its part.
        """
        stream = self._relay.get(job.job)
        started = stream is not None and stream.started
        successor = None if started else self._successor(turn, job, same_node=same_node)
        turn.log(
            AttemptEnded(
                job.job,
                turn.now.wall_ms,
                job.attempt,
                job.fence,
                job.node,
                code,
                message[:500],
                lost and job.job not in self._unheard,
                evidence,
            )
        )
        self._registry.sessions.give_back(job.node)
        if not told:
            self._stop(turn, job, Code.STALE)
        ended = self._job(job.job)
        if successor is not None:
            self._begin(turn, ended, successor)
            return
        self._end(turn, ended, JobState.FAILED, code, message)
        signed = claim or (stream.signed if stream is not None else None)
        if started and stream is not None and signed is not None:
            self._settle(turn, self._job(job.job), stream, signed, JobState.FAILED)

    def move_on(self, turn: Turn, node: NodeId) -> None:
        """A node vanished: what it had not begun goes to others; what it had waits for GONE_MS.

        What nobody else can take waits for its lease: the node may come back and begin it.
        """
        gone_ms = turn.now.ticks_ms + GONE_MS
        for job in self._jobs.on_node(node):
            stream = self._relay.get(job.job)
            started = stream is not None and stream.started
            if not started and self._successor(turn, job) is not None:
                message = "the node vanished before its first token"
                self.end_attempt(turn, job, Code.NODE_LOST, message, lost=True, told=True)
            elif started and stream is not None and not stream.direct:
                # Whom its client follows directly may be at work: its lease tells.
                lease_ms = self._timers.due((LEASE, job.job)) or gone_ms
                self._timers.set((LEASE, job.job), min(lease_ms, gone_ms))

    def cancel(self, turn: Turn, job: Job, order: Verified[CancelOrder]) -> None:
        """The client wants no more."""
        self._stop(turn, job, Code.CANCELLED)
        expires_ms = order.message.header.expires_at_ms
        why = (Code.CANCELLED, "cancelled by its client")
        self._end(turn, job, JobState.CANCELLED, *why, order=order.id, order_expires_ms=expires_ms)

    def complete(
        self, turn: Turn, job: Job, stream: Stream, claim: Verified[InferenceAttestation]
    ) -> None:
        """The node attested a whole answer: settle it, which ends the job."""
        self._settle(turn, job, stream, claim, JobState.SETTLED)
        self._registry.sessions.give_back(job.node)
        self._close(turn, job.job)

    def settle_part(
        self, turn: Turn, job: Job, stream: Stream, claim: Verified[InferenceAttestation]
    ) -> None:
        """The job ended another way; what its node attests until then is settled once."""
        self._settle(turn, job, stream, claim, job.state)

    def view(self, job: Job) -> Publish:
        """The job as watchers see it: with the tokens relayed, and what follows its chunks."""
        stream = self._relay.get(job.job)
        if stream is None:
            return Publish(job.view())
        return Publish(job.view(stream.chain.tokens), tuple(stream.tail))

    def publish(self, turn: Turn, job: JobId) -> None:
        """Show watchers where the job is."""
        turn.emit(self.view(self._job(job)))

    def terms_of(self, job: JobId) -> Verified[JobTerms] | None:
        """The terms of a job whose tail is still there."""
        return self._terms.get(job)

    def tick(self, turn: Turn) -> None:
        """End what ran out, unless time passed here without us."""
        now_ms, before_ms = turn.now.ticks_ms, self._ticked_ms
        self._ticked_ms = now_ms
        if before_ms is not None and now_ms - before_ms > AWAY_MS:
            for job in self._jobs.live():
                self._await_return(job.job, turn.now)
        for kind, job_id in self._timers.take_due(turn.now.ticks_ms):
            found = self._jobs.get(JobId(job_id))
            if kind == TAIL or found is None:
                self.release(JobId(job_id))
            elif kind == DEADLINE and not found.state.terminal:
                self._expire(turn, found)
            elif kind == LEASE and found.at_work:
                here = self._registry.sessions.get(found.node) is not None
                silent = f"the node gave no sign of work for {LEASE_MS // 1000} s"
                message = silent if here else "the node vanished and did not come back in time"
                self.end_attempt(turn, found, Code.NODE_LOST, message, lost=True)

    def _await_return(self, job: JobId, now: Moment) -> None:
        """We were away: its node has RETURN_MS to be heard of again."""
        self._unheard.add(job)
        self._timers.set((LEASE, job), now.ticks_ms + RETURN_MS)

    def _begin(self, turn: Turn, job: Job, node: NodeId) -> None:
        self._unheard.discard(job.job)
        session = self._registry.sessions.get(node)
        assert session is not None
        attempt, fence = job.attempt + 1, self._jobs.last_fence + 1
        assignment = self._clearing.assign(turn, self._terms[job.job], node, attempt, fence)
        turn.log(JobAssigned(job.job, turn.now.wall_ms, attempt, fence, node, assignment.envelope))
        session.free = max(0, session.free - 1)
        self._relay.open(assignment, turn.now.ticks_us, session.rtt_us)
        self._timers.set((LEASE, job.job), turn.now.ticks_ms + LEASE_MS)
        size = self._terms[job.job].message.body_bytes
        turn.emit(
            Assign(node, session.session, job.job, assignment.envelope, attempt, body_bytes=size)
        )
        self.publish(turn, job.job)

    def _successor(self, turn: Turn, job: Job, *, same_node: bool = False) -> NodeId | None:
        """Another candidate that can take the job now, in the client's order."""
        if job.attempt >= ATTEMPTS_MAX:
            return None
        request = Request(job.model_profile, 0, job.max_tokens)
        others = [node for node in job.candidates if node not in job.tried]
        ranking = self._registry.rank_among(turn, request, others)
        chosen = {ranked.node for ranked in ranking.chosen}
        if same_node and self._registry.sessions.get(job.node) is not None:
            chosen.add(job.node)
            others.append(job.node)
        return next((node for node in others if node in chosen), None)

    def _expire(self, turn: Turn, job: Job) -> None:
        message = f"it was not done within {job.timeout_ms / 1000:g} s"
        self._stop(turn, job, Code.EXPIRED)
        self._end(turn, job, JobState.EXPIRED, Code.EXPIRED, message)

    def _end(
        self, turn: Turn, job: Job, state: JobState, code: Code, message: str, **order: Any
    ) -> None:
        if job.at_work:
            self._registry.sessions.give_back(job.node)
        stream = self._relay.get(job.job)
        tokens = stream.chain.tokens if stream is not None else 0
        turn.log(JobEnded(job.job, turn.now.wall_ms, state, code, message[:500], tokens, **order))
        self._close(turn, job.job)

    def _close(self, turn: Turn, job: JobId) -> None:
        self._timers.drop((LEASE, job))
        self._timers.drop((DEADLINE, job))
        self._timers.set((TAIL, job), turn.now.ticks_ms + TAIL_KEPT_MS)
        self._relay.end(job)
        self.publish(turn, job)

    def _stop(self, turn: Turn, job: Job, code: Code) -> None:
        session = self._registry.sessions.get(job.node)
        if session is not None and job.at_work:
            turn.emit(StopAttempt(job.node, session.session, job.job, job.attempt, job.fence, code))

    def _settle(
        self,
        turn: Turn,
        job: Job,
        stream: Stream,
        claim: Verified[InferenceAttestation] | Verified[ChunkCheckpoint],
        outcome: JobState,
    ) -> None:
        part = Part(
            job=job,
            terms=self._terms[job.job],
            stream=stream,
            claim=claim,
            outcome=outcome,
            paid_until=self._ledger.paid_until(job.root),
            descriptor=self._registry.descriptor(job.node),
        )
        settled = self._clearing.clear(turn, part)
        turn.log(settled)
        self._show(job.job, settled, isinstance(claim.message, InferenceAttestation))
        self.publish(turn, job.job)

    def _show(self, job: JobId, settled: AttemptSettled, attested: bool) -> None:
        """What watchers see after the chunks."""
        if attested:
            self._relay.add_tail(job, attestation=settled.claim)
        if settled.relay_receipt is not None:
            self._relay.add_tail(job, relay_receipt=settled.relay_receipt)
        self._relay.add_tail(job, settlement=settled.settlement)

    def _job(self, job_id: JobId) -> Job:
        job = self._jobs.get(job_id)
        assert job is not None
        return job
