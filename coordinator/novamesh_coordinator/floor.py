"""Attempts from their nodes' side: attach, decide, stream, attest, give up, vanish.

Rules: only the newest session of a node speaks for it; what it says of an attempt counts only for
the job's present attempt and fence, otherwise the node is told to stop, once; a node that breaks
the protocol of an attempt loses that attempt. Who hands work back in order, declining or signing
that it stops, is not blamed for it. Signatures were checked by the verifier.
"""

from __future__ import annotations

from typing import Final, cast

from novamesh_coordinator.dispatcher import Dispatcher
from novamesh_coordinator.donations import Donations
from novamesh_coordinator.effects import StopAttempt, TakeDonation, Turn, Wake
from novamesh_coordinator.events import EvidenceKept
from novamesh_coordinator.inputs import (
    AttemptAttested,
    AttemptDecided,
    AttemptFailed,
    CheckpointArrived,
    ChunkArrived,
    DescriptorRenewed,
    EchoArrived,
    IdleAsked,
    LoadChanged,
    NodeAttached,
    NodeDetached,
    PrefillMoved,
    ProbeWanted,
    WitnessArrived,
    WorkOffered,
)
from novamesh_coordinator.jobs import EVIDENCE_KEPT_MAX, Job, Jobs
from novamesh_coordinator.membership import Membership
from novamesh_coordinator.registry import Registry
from novamesh_coordinator.relay import Relay, Stream
from novamesh_coordinator.verifier import check_claim
from novamesh_proto.attestation import check_attestation
from novamesh_proto.envelope import Verified
from novamesh_proto.errors import Code, NovaMeshError, PeerError, parse_code
from novamesh_proto.identity import format_node_id
from novamesh_proto.limits import RUNNING_MAX
from novamesh_proto.messages import (
    ChunkCheckpoint,
    ClientReceipt,
    FinishReason,
    IdleReport,
    JobId,
    JobState,
    JobTerms,
    NodeId,
    RunningAttempt,
    StreamAck,
)

SPARE_CHUNKS: Final = 64  # chunks without tokens that an attempt may have
CHUNKS_MAX: Final = 65_536  # of an attempt; a node sends about 20 a second
# Why a node is told to stop an attempt of a job that has ended; otherwise it is simply old.
_STOP_CODES: Final = {JobState.CANCELLED: Code.CANCELLED, JobState.EXPIRED: Code.EXPIRED}
# A node that signs this gives work back: its owner stops it, or nobody wants it any more.
HANDED_BACK: Final = frozenset({Code.UNAVAILABLE, Code.CANCELLED, Code.EXPIRED})


class Floor:
    """Where nodes work."""

    def __init__(
        self,
        membership: Membership,
        registry: Registry,
        jobs: Jobs,
        relay: Relay,
        dispatcher: Dispatcher,
        donations: Donations,
    ) -> None:
        self._membership = membership
        self._registry = registry
        self._jobs = jobs
        self._relay = relay
        self._dispatcher = dispatcher
        self._donations = donations

    def attach(self, turn: Turn, came: NodeAttached) -> tuple[RunningAttempt, ...]:
        """A node is here. Returns the attempts to go on with, and from which chunk.

        Raises:
            NovaMeshError: NOT_A_MEMBER, BANNED, STALE for an old descriptor.
        """
        node = came.hello.issuer
        self._membership.require(node)
        self._registry.attach(turn, came.descriptor, came.session, came.rtt_us)
        listed = {(run.job, run.attempt, run.fence) for run in came.hello.message.running}
        resumed: list[RunningAttempt] = []
        for job in self._jobs.on_node(node):
            if (job.job, job.attempt, job.fence) in listed and len(resumed) < RUNNING_MAX:
                self._dispatcher.accept(turn, job, came.hello.envelope)
                stream = self._stream(job)
                resumed.append(RunningAttempt(job.job, job.attempt, job.fence, stream.chain.chunks))
            else:
                self._dispatcher.end_attempt(
                    turn,
                    job,
                    Code.NODE_LOST,
                    "the node came back without the attempt",
                    lost=True,
                    told=True,
                    same_node=True,
                )
        ended = [run for run in came.hello.message.running if self._may_claim(node, run)]
        return (*resumed, *ended[: RUNNING_MAX - len(resumed)])

    def detach(self, turn: Turn, gone: NodeDetached) -> None:
        """A stream ended. Where we stop ourselves, its attempts wait for our return."""
        closed = self._registry.sessions.close(gone.node, gone.session)
        if closed and not gone.stopping:
            self._dispatcher.move_on(turn, gone.node)

    def set_load(self, turn: Turn, said: LoadChanged) -> None:
        """How much more the node takes."""
        session = self._registry.sessions.require(said.node, said.session, turn.now)
        self._registry.sessions.set_load(session, said.load)

    def renew_descriptor(self, turn: Turn, said: DescriptorRenewed) -> None:
        """A newer descriptor."""
        session = self._registry.sessions.require(said.node, said.session, turn.now)
        self._registry.renew(turn, session, said.descriptor)

    def report_idle(self, turn: Turn, asked: IdleAsked) -> IdleReport:
        """Why the node got no work."""
        return self._registry.sessions.require(asked.node, asked.session, turn.now).report()

    def decide(self, turn: Turn, said: AttemptDecided) -> None:
        """The node takes the attempt, or another one must."""
        decision = said.decision
        answer = decision.message
        job = self._current(
            turn, decision.issuer, said.session, answer.job, answer.attempt, answer.fence
        )
        if job is None:
            return
        if answer.accepted:
            self._dispatcher.accept(turn, job, decision.envelope)
            return
        code = parse_code(answer.code)
        self._dispatcher.end_attempt(
            turn,
            job,
            code,
            answer.message or "the node declined the job",
            lost=False,
            evidence=decision.envelope,
            told=True,
        )
        if code is Code.BUSY:
            self._registry.sessions.fill(decision.issuer)

    def progress(self, turn: Turn, said: PrefillMoved) -> None:
        """Prefill goes on: that renews the lease, if it truly goes on."""
        moved = said.progress
        job = self._current(turn, said.node, said.session, moved.job, moved.attempt, moved.fence)
        if job is None:
            return
        stream = self._stream(job)
        if moved.prompt_tokens_done > stream.prompt_tokens_done:
            stream.prompt_tokens_done = moved.prompt_tokens_done
            self._dispatcher.renew(turn, job)

    def relay_chunk(self, turn: Turn, said: ChunkArrived) -> None:
        """A sealed chunk goes to whoever follows the job."""
        came = said.chunk
        job = self._current(turn, said.node, said.session, came.job, came.attempt, came.fence)
        if job is None:
            return
        stream = self._stream(job)
        if came.chunk.index < stream.chain.chunks:
            return  # sent again after a reconnect
        try:
            self._check_room(job, stream, came.chunk.tokens)
            self._relay.add_chunk(job.job, came.chunk, turn.now.ticks_us)
            stream.catch_up(job.start_position)
        except PeerError as error:
            self._lose(turn, job, error)
            return
        self._dispatcher.renew(turn, job)
        turn.emit(Wake(job.job))

    def relay_checkpoint(self, turn: Turn, said: CheckpointArrived) -> None:
        """What the node commits to goes to the client, and may be paid if the node dies."""
        point = said.checkpoint
        claim = point.message
        job = self._current(turn, point.issuer, said.session, claim.job, claim.attempt, claim.fence)
        if job is None:
            return
        stream = self._stream(job)
        if claim.chunks > stream.chain.chunks:
            self._take_ahead(turn, job, stream, point)
            return
        if not stream.holds(claim, job.start_position):
            problem = "its checkpoint names another chain than the relay saw"
            self._lose(turn, job, PeerError(Code.CORRUPT, problem, format_node_id(job.node)))
            return
        if stream.checkpoint is not None and claim.chunks < stream.checkpoint.message.chunks:
            return  # sent again after a reconnect
        self._relay.add_checkpoint(job.job, point)
        turn.emit(Wake(job.job))

    def take_witness(self, turn: Turn, said: WitnessArrived) -> None:
        """What the client signed on a direct path: it bounds the settlement in a relay's place."""
        witness, what = said.witness, said.witness.message
        self._registry.sessions.require(said.node, said.session, turn.now)
        job, stream = self._jobs.get(what.job), self._relay.get(what.job)
        if job is None or stream is None or witness.issuer != job.client:
            return
        if (said.node, what.attempt, what.fence) != (job.node, job.attempt, job.fence):
            return
        if isinstance(what, ClientReceipt):
            stream.receipt = cast("Verified[ClientReceipt]", witness)
        elif stream.ack is None or what.chunks > stream.ack.message.chunks:
            stream.ack = cast("Verified[StreamAck]", witness)

    def take_donation(self, turn: Turn, said: WorkOffered) -> None:
        """Work that nobody pays: logged once for its job, while its terms could still be used.

        Raises:
            NovaMeshError: FORBIDDEN where it is another node's, NOT_A_MEMBER.
        """
        proof = said.proof
        session = self._registry.sessions.require(said.node, said.session, turn.now)
        if proof.node != said.node or proof.coordinator != said.node:
            raise PeerError(
                Code.FORBIDDEN,
                "this work was not the node's own to give",
                format_node_id(said.node),
            )
        self._membership.require(proof.client)
        self._donations.take(turn, proof)
        turn.emit(TakeDonation(said.node, session.session, proof.job))

    def probe(self, turn: Turn, wanted: ProbeWanted) -> None:
        """Somebody says that a node is gone: it has PROBE_MS to say otherwise."""
        self._registry.probe(turn, wanted.node)

    def echo(self, turn: Turn, said: EchoArrived) -> None:
        """The node is here."""
        session = self._registry.sessions.require(said.node, said.session, turn.now)
        self._registry.answered(session, said.nonce)

    def tick(self, turn: Turn) -> None:
        """Nodes that did not answer a probe have gone."""
        for node in self._registry.silent(turn):
            self._dispatcher.move_on(turn, node)

    def attest(self, turn: Turn, said: AttemptAttested) -> None:
        """The node's claim about an attempt: settle it once, or keep it as evidence."""
        claim = said.attestation
        node, att = claim.issuer, claim.message
        self._registry.sessions.require(node, said.session, turn.now)
        job = self._jobs.get(att.job)
        if job is None or node not in job.tried:
            return
        stream, terms = self._relay.get(job.job), self._dispatcher.terms_of(job.job)
        current = (job.attempt, job.fence, job.node) == (att.attempt, att.fence, node)
        if not current or job.settled or stream is None or terms is None:
            self._keep_late(turn, job, said)
            return
        if job.state.terminal:
            self._settle_ended(turn, job, stream, terms, said)
            return
        try:
            if stream.vouched(att):
                check_attestation(claim, terms, stream.assignment)
            else:
                check_claim(claim, terms, stream)
        except PeerError as error:
            self._lose(turn, job, error, said)
            return
        if att.finish in (FinishReason.STOP, FinishReason.LENGTH):
            self._dispatcher.complete(turn, job, stream, claim)
        else:
            self._dispatcher.end_attempt(
                turn,
                job,
                Code.NODE_LOST,
                "the node stopped before the answer was complete",
                lost=att.finish is not FinishReason.CANCELLED,
                evidence=claim.envelope,
                told=True,
                claim=claim,
            )

    def fail(self, turn: Turn, said: AttemptFailed) -> None:
        """The node gives up an attempt."""
        failure = said.failure
        what = failure.message
        job = self._current(turn, failure.issuer, said.session, what.job, what.attempt, what.fence)
        if job is not None:
            code = parse_code(what.code)
            self._dispatcher.end_attempt(
                turn,
                job,
                code,
                what.message or "the node could not go on",
                lost=code not in HANDED_BACK,
                evidence=failure.envelope,
                told=True,
            )

    def _take_ahead(
        self, turn: Turn, job: Job, stream: Stream, point: Verified[ChunkCheckpoint]
    ) -> None:
        """The node commits to chunks that its client has from it directly: that is progress."""
        room = job.max_tokens
        if point.message.position > room or point.message.chunks > CHUNKS_MAX:
            problem = f"its checkpoint is beyond the {room} tokens of its terms"
            self._lose(turn, job, PeerError(Code.CORRUPT, problem, format_node_id(job.node)))
            return
        if stream.ahead is None or point.message.chunks > stream.ahead.message.chunks:
            stream.ahead = point
            self._dispatcher.renew(turn, job)

    def _current(
        self, turn: Turn, node: NodeId, session: bytes, job_id: JobId, attempt: int, fence: int
    ) -> Job | None:
        """The job, if this is its attempt at work; otherwise the node is told to stop."""
        speaker = self._registry.sessions.require(node, session, turn.now)
        job = self._jobs.get(job_id)
        if job is not None and job.is_worked_on(node, attempt, fence):
            return job
        if speaker.stop_once(job_id, attempt):
            code = _STOP_CODES.get(job.state, Code.STALE) if job is not None else Code.STALE
            turn.emit(StopAttempt(node, session, job_id, attempt, fence, code))
        return None

    def _may_claim(self, node: NodeId, run: RunningAttempt) -> bool:
        """Whether a node may still say what it did on a job that ended while it was away from us.

        Its client may have all of it, from the node itself, and have signed for that.
        """
        job, stream = self._jobs.get(run.job), self._relay.get(run.job)
        if job is None or stream is None or job.settled or not job.state.terminal:
            return False
        ours = (job.node, job.attempt, job.fence) == (node, run.attempt, run.fence)
        return ours and (job.state in _STOP_CODES or stream.receipt is not None)

    def _stream(self, job: Job) -> Stream:
        stream = self._relay.get(job.job)
        assert stream is not None
        return stream

    @staticmethod
    def _check_room(job: Job, stream: Stream, tokens: int) -> None:
        room = job.max_tokens - job.start_position
        chunks_max = min(room + SPARE_CHUNKS, CHUNKS_MAX)
        if stream.chain.tokens + tokens > room or stream.chain.chunks > chunks_max:
            problem = (
                f"the answer is longer than the {room} tokens of its terms, or has more than "
                f"{chunks_max} chunks"
            )
            raise PeerError(Code.CORRUPT, problem, format_node_id(job.node))

    def _lose(
        self, turn: Turn, job: Job, error: NovaMeshError, said: AttemptAttested | None = None
    ) -> None:
        """The node broke the protocol of this attempt."""
        evidence = said.attestation.envelope if said is not None else None
        self._dispatcher.end_attempt(
            turn, job, error.code, error.message, lost=True, evidence=evidence
        )

    def _settle_ended(
        self,
        turn: Turn,
        job: Job,
        stream: Stream,
        terms: Verified[JobTerms],
        said: AttemptAttested,
    ) -> None:
        """A node says what it did until its job was stopped, or what its client has whole."""
        att = said.attestation.message
        if job.state not in _STOP_CODES and not stream.vouched(att):
            self._keep_late(turn, job, said)
            return
        try:
            check_attestation(said.attestation, terms, stream.assignment)
        except PeerError:
            self._keep_late(turn, job, said)
            return
        self._dispatcher.settle_part(turn, job, stream, said.attestation)

    def _keep_late(self, turn: Turn, job: Job, said: AttemptAttested) -> None:
        claim = said.attestation
        if job.evidence < EVIDENCE_KEPT_MAX:
            turn.log(
                EvidenceKept(
                    job.job, turn.now.wall_ms, claim.issuer, "late_attestation", claim.envelope
                )
            )
