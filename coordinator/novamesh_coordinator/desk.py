"""Jobs from their clients' side: submit, follow, acknowledge, cancel, ask, countersign.

Rules: only members; a job is told to its own client and to nobody else; the same terms are the same
job, and a key names one job only; a job that nobody could take is refused at once, with the reason.
What happens to a job once it is admitted is `dispatcher`'s.
"""

from __future__ import annotations

from typing import Final

from novamesh_coordinator.dispatcher import Dispatcher
from novamesh_coordinator.effects import PassAck, Turn
from novamesh_coordinator.events import EvidenceKept, JobAdmitted
from novamesh_coordinator.inputs import (
    AckReceived,
    CancelAsked,
    JobAsked,
    JobsAsked,
    JobSubmitted,
    ReceiptHandedIn,
    WatchAsked,
)
from novamesh_coordinator.jobs import EVIDENCE_KEPT_MAX, Job, Jobs
from novamesh_coordinator.membership import Membership
from novamesh_coordinator.registry import Registry
from novamesh_coordinator.relay import Relay
from novamesh_proto.envelope import Verified
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.matching import Cause, Request, unservable
from novamesh_proto.messages import JobId, JobTerms, JobView, NodeId, ReceiptVerdict

CLIENT_JOBS_MAX: Final = 256  # of one client, at the same time
LIVE_JOBS_MAX: Final = 16_384
JOBS_KEPT_MAX: Final = 131_072
RETRY_MS: Final = 2_000
MOVED_MS: Final = 100  # ask for other candidates


class Desk:
    """Where clients come."""

    def __init__(
        self,
        membership: Membership,
        registry: Registry,
        jobs: Jobs,
        relay: Relay,
        dispatcher: Dispatcher,
    ) -> None:
        self._membership = membership
        self._registry = registry
        self._jobs = jobs
        self._relay = relay
        self._dispatcher = dispatcher

    def submit(self, turn: Turn, asked: JobSubmitted) -> JobView:
        """Admit a job and assign it, or say why not.

        Raises:
            NovaMeshError: NOT_A_MEMBER, BANNED, CONFLICT for a key that names another job, BUSY,
                NO_CAPACITY, NOT_FOUND for a parent that is not kept.
        """
        client = asked.terms.issuer
        self._membership.require(client)
        known = self._known(asked.terms)
        if known is not None:
            # Handed in again after another match: what that match held was not wasted.
            self._registry.reservations.release(asked.reservations, client)
            return self.view(known)
        self._require_room(client)
        root = self._root(asked.terms)
        node = self._choose(turn, asked)
        job = self._admit(turn, asked, root)
        self._registry.reservations.release(asked.reservations, client)
        self._dispatcher.start(turn, job, asked.terms, node)
        return self.view(self._job(job.job))

    def watch(self, turn: Turn, asked: WatchAsked) -> None:
        """Show this client's watchers where the job is.

        Raises:
            NovaMeshError: NOT_FOUND, NOT_A_MEMBER, BANNED.
        """
        job = self._own(asked.query.issuer, asked.query.message.job)
        self._dispatcher.publish(turn, job.job)

    def ask(self, turn: Turn, asked: JobAsked) -> JobView:
        """Where is my job?"""
        return self.view(self._own(asked.query.issuer, asked.query.message.job))

    def list(self, turn: Turn, asked: JobsAsked) -> tuple[JobView, ...]:
        """Where are my jobs? Newest first."""
        client = asked.query.issuer
        self._membership.require(client)
        return tuple(map(self.view, self._jobs.of_client(client, asked.query.message.count)))

    def cancel(self, turn: Turn, asked: CancelAsked) -> JobView:
        """Stop a job; one that has ended stays as it is."""
        order = asked.order
        job = self._own(order.issuer, order.message.job)
        if not job.state.terminal:
            self._dispatcher.cancel(turn, job, order)
        return self.view(self._job(job.job))

    def acknowledge(self, turn: Turn, asked: AckReceived) -> None:
        """Pass the client's acknowledgement to the node at work."""
        ack = asked.ack.message
        job = self._own(asked.ack.issuer, ack.job)
        stream = self._relay.get(job.job)
        if (
            stream is None
            or not job.at_work
            or (job.attempt, job.fence) != (ack.attempt, ack.fence)
        ):
            return
        if stream.ack is not None and ack.chunks < stream.ack.message.chunks:
            return
        # More than came here is what its node sent it by another way.
        stream.ack = asked.ack
        session = self._registry.sessions.get(job.node)
        if session is not None:
            turn.emit(PassAck(job.node, session.session, asked.ack.envelope))

    def take_receipt(self, turn: Turn, asked: ReceiptHandedIn) -> None:
        """Log the client's countersignature, once.

        Raises:
            NovaMeshError: STALE if it is of another attempt than the last one.
        """
        receipt = asked.receipt
        said = receipt.message
        job = self._own(receipt.issuer, said.job)
        if (said.attempt, said.fence) != (job.attempt, job.fence):
            raise NovaMeshError(
                Code.STALE, f"the receipt is of attempt {said.attempt}, the job had {job.attempt}"
            )
        stream = self._relay.get(job.job)
        if stream is not None and stream.receipt is None and said.verdict is ReceiptVerdict.OK:
            stream.receipt = receipt  # its node may have ended before it could bring this along
        if job.receipt or job.evidence >= EVIDENCE_KEPT_MAX:
            return
        turn.log(
            EvidenceKept(
                job.job, turn.now.wall_ms, receipt.issuer, "client_receipt", receipt.envelope
            )
        )

    def view(self, job: Job) -> JobView:
        """The job as its client sees it, with the tokens relayed so far."""
        return self._dispatcher.view(job).view

    def _own(self, client: NodeId, job_id: JobId) -> Job:
        self._membership.require(client)
        job = self._jobs.get(job_id)
        if job is None or job.client != client:
            raise NovaMeshError(
                Code.NOT_FOUND,
                f"you have no job {job_id.hex()[:12]} here",
                "ended jobs are kept for half an hour; your receipts: novamesh receipt ls",
            )
        return job

    def _job(self, job_id: JobId) -> Job:
        job = self._jobs.get(job_id)
        assert job is not None
        return job

    def _known(self, terms: Verified[JobTerms]) -> Job | None:
        same = self._jobs.get(JobId(terms.id))
        if same is not None:
            return same
        other = self._jobs.find(terms.issuer, terms.message.idempotency_key)
        if other is not None:
            raise NovaMeshError(
                Code.CONFLICT,
                f"this key already names job {other.job.hex()[:12]} with other terms",
                "follow that job, or choose a new idempotency key",
            )
        return None

    def _require_room(self, client: NodeId) -> None:
        mine = self._jobs.live_count(client)
        full = (
            f"you have {mine} jobs at work, as many as a client may have"
            if mine >= CLIENT_JOBS_MAX
            else "the pool is full"
            if self._jobs.live_count() >= LIVE_JOBS_MAX or len(self._jobs) >= JOBS_KEPT_MAX
            else ""
        )
        if full:
            raise NovaMeshError(Code.BUSY, full, "try again shortly", RETRY_MS)

    def _root(self, terms: Verified[JobTerms]) -> JobId:
        """The job whose answer this one continues, or itself."""
        wanted = terms.message
        continues = {bool(wanted.parent_job), wanted.start_position > 0, bool(wanted.prefix_digest)}
        if len(continues) > 1:
            raise NovaMeshError(
                Code.BAD_REQUEST, "start, parent and forced prefix do not fit together"
            )
        # One that has all of them is still to be attested.
        if wanted.start_position > wanted.sampling.max_tokens:
            raise NovaMeshError(
                Code.BAD_REQUEST,
                f"the answer has {wanted.start_position} tokens already, its terms allow "
                f"{wanted.sampling.max_tokens}",
            )
        if not wanted.parent_job:
            return JobId(terms.id)
        parent = self._own(terms.issuer, JobId(wanted.parent_job))
        if parent.model_profile != wanted.model_profile:
            raise NovaMeshError(
                Code.BAD_REQUEST, "an answer is continued by the model it began with"
            )
        if not parent.state.terminal:
            raise NovaMeshError(
                Code.CONFLICT, "the job to continue is still at work", "cancel it first"
            )
        return parent.root

    def _choose(self, turn: Turn, asked: JobSubmitted) -> NodeId:
        """The first of the client's candidates that can take the job now."""
        wanted = asked.terms.message
        nodes = [node for node, _ in asked.wraps]
        # The prompt was measured when the client asked for candidates; the node counts exactly.
        request = Request(wanted.model_profile, 0, wanted.sampling.max_tokens)
        own = self._registry.reservations.own(asked.reservations, asked.terms.issuer, turn.now)
        ranking = self._registry.rank_among(turn, request, nodes, own)
        chosen = {ranked.node for ranked in ranking.chosen}
        node = next((node for node in nodes if node in chosen), None)
        if node is not None:
            return node
        refusal = unservable(ranking, "this model")
        if refusal is not None and refusal.code is Code.BUSY:
            raise refusal
        moved = any(refused.cause is Cause.NOT_ACCEPTING for refused in ranking.refused)
        if moved or refusal is None or refusal.code is Code.MODEL_NOT_FOUND:
            # They were here and took work when they were matched; others may be and take it now.
            raise NovaMeshError(
                Code.BUSY,
                "none of the nodes the job is sealed for is here and takes work any more",
                "ask for new candidates and seal the job again",
                MOVED_MS,
            )
        raise refusal

    def _admit(self, turn: Turn, asked: JobSubmitted, root: JobId) -> Job:
        terms, wanted = asked.terms, asked.terms.message
        turn.log(
            JobAdmitted(
                job=JobId(terms.id),
                at_ms=turn.now.wall_ms,
                client=terms.issuer,
                key=wanted.idempotency_key,
                model_profile=wanted.model_profile,
                timeout_ms=wanted.timeout_ms,
                max_tokens=wanted.sampling.max_tokens,
                body_bytes=wanted.body_bytes,
                start_position=wanted.start_position,
                root=root,
                candidates=tuple(node for node, _ in asked.wraps),
                terms=terms.envelope,
            )
        )
        return self._job(JobId(terms.id))
