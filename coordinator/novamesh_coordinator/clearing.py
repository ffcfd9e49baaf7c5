"""Sign what the coordinator says about an attempt: the assignment, what it saw, what it pays.

All three are made from values given; times and nonces come with the turn. The rule of what is paid
is `novamesh_proto.settlement`'s.
"""

from __future__ import annotations

from dataclasses import dataclass

from novamesh_coordinator.effects import Turn
from novamesh_coordinator.events import AttemptSettled
from novamesh_coordinator.jobs import Job
from novamesh_coordinator.relay import Stream
from novamesh_coordinator.verifier import rankable_speed
from novamesh_proto import envelope, settlement
from novamesh_proto.attestation import burst_tokens
from novamesh_proto.envelope import Verified
from novamesh_proto.identity import PrivateKey
from novamesh_proto.limits import LEASE_MS, RECORD_LIFE_MS
from novamesh_proto.messages import (
    ChunkCheckpoint,
    Envelope,
    Header,
    InferenceAttestation,
    JobAssignment,
    JobId,
    JobState,
    JobTerms,
    NodeDescriptor,
    NodeId,
    RelayReceipt,
    Settlement,
)
from novamesh_proto.settlement import Work

ASSIGNMENT_LIFE_MS = 60_000


@dataclass(frozen=True, slots=True)
class Part:
    """An attempt to be settled: what belongs together, and how the job ends or ended."""

    job: Job
    terms: Verified[JobTerms]
    stream: Stream
    claim: Verified[InferenceAttestation] | Verified[ChunkCheckpoint]
    outcome: JobState
    paid_until: int
    descriptor: NodeDescriptor | None


@dataclass(frozen=True, slots=True)
class Clearing:
    """Whoever signs: the coordinator's key and its pool's name."""

    key: PrivateKey
    network: str

    def assign(
        self, turn: Turn, terms: Verified[JobTerms], node: NodeId, attempt: int, fence: int
    ) -> Verified[JobAssignment]:
        """The signed assignment of an attempt to a node."""
        header = envelope.header(
            self.key,
            self.network,
            (node, terms.issuer),
            turn.now.wall_ms,
            ASSIGNMENT_LIFE_MS,
            in_reply_to=terms.id,
            nonce=turn.nonce(),
        )
        job = JobAssignment(
            header=header,
            job=JobId(terms.id),
            node=node,
            attempt=attempt,
            fence=fence,
            lease_ms=LEASE_MS,
        )
        return envelope.open(envelope.seal(job, self.key), JobAssignment, network=self.network)

    def clear(self, turn: Turn, part: Part) -> AttemptSettled:
        """The settlement of an attempt by what its node signed and what its witness saw.

        That is the relay; where the client took the answer from the node itself, the client.
        """
        claim, stream = part.claim, part.stream
        parties = (part.terms.issuer, stream.assignment.message.node)
        said = claim.message
        att = said if isinstance(said, InferenceAttestation) else None
        witness = _witness(stream) if said.chunks > stream.chain.chunks else None
        direct = witness is not None
        seen = None if direct else self._relay_receipt(turn, part, parties)
        relay = None if seen is None else envelope.seal(seen, self.key)
        work = Work(
            terms=part.terms.message,
            assignment=stream.assignment.message,
            fence=part.job.fence,
            attestation=att,
            checkpoint=said if isinstance(said, ChunkCheckpoint) else None,
            relay_receipt=seen,
            ack=stream.ack.message if direct and stream.ack else None,
            client_receipt=stream.receipt.message if direct and stream.receipt else None,
            paid_until=part.paid_until,
        )
        payment = settlement.settle(work)
        evidence = [part.terms.id, stream.assignment.id, claim.id]
        evidence += [envelope.message_id(each) for each in (relay, witness) if each is not None]
        header = self._record_header(turn, parties, claim.id)
        paid = settlement.record(header, work, payment, part.outcome, tuple(evidence))
        # What only the client saw is paid, and ranks nobody: it may be the node's own friend.
        speed = _speed(att, seen, part) if att is not None and seen is not None else 0
        return _settled(turn, part, (relay, witness), (paid, envelope.seal(paid, self.key)), speed)

    def _relay_receipt(
        self,
        turn: Turn,
        part: Part,
        parties: tuple[NodeId, NodeId],
    ) -> RelayReceipt:
        stream = part.stream
        given = stream.assignment.message
        return RelayReceipt(
            header=self._record_header(turn, parties, part.claim.id),
            job=given.job,
            attempt=given.attempt,
            fence=given.fence,
            chain_head=stream.chain.head,
            chunks=stream.chain.chunks,
            tokens=stream.chain.tokens,
            first_us=stream.first_us,
            last_us=stream.last_us,
            rtt_us=stream.rtt_us,
        )

    def _record_header(
        self, turn: Turn, parties: tuple[NodeId, NodeId], in_reply_to: bytes
    ) -> Header:
        return envelope.header(
            self.key,
            self.network,
            parties,
            turn.now.wall_ms,
            RECORD_LIFE_MS,
            in_reply_to=in_reply_to,
            nonce=turn.nonce(),
        )


def _speed(claim: InferenceAttestation, receipt: RelayReceipt, part: Part) -> int:
    burst = burst_tokens(part.stream.arrivals(), receipt.last_us)
    return rankable_speed(claim, receipt, burst, part.descriptor)


def _witness(stream: Stream) -> Envelope | None:
    """The furthest thing that the client signed on a direct path."""
    if stream.receipt is not None:
        return stream.receipt.envelope
    return None if stream.ack is None else stream.ack.envelope


def _settled(
    turn: Turn,
    part: Part,
    seen: tuple[Envelope | None, Envelope | None],
    settled: tuple[Settlement, Envelope],
    milli_tokens_per_s: int,
) -> AttemptSettled:
    (relay, witness), (paid, sealed) = seen, settled
    return AttemptSettled(
        job=part.job.job,
        at_ms=turn.now.wall_ms,
        attempt=paid.attempt,
        fence=paid.fence,
        node=paid.node,
        outcome=paid.outcome,
        start_position=paid.start_position,
        prompt_tokens=paid.prompt_tokens,
        completion_tokens=paid.completion_tokens,
        milli_tokens_per_s=milli_tokens_per_s,
        claim=part.claim.envelope,
        relay_receipt=relay,
        settlement=sealed,
        witness=witness,
    )
