"""What a node signs about an attempt: decision, failure, checkpoint.

Rules: each statement answers the assignment and goes to the coordinator and the client; messages
are cut to what the wire takes and never hold content. The timing attestation is in `attestor`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from novamesh_node.attempt import AttemptKey
from novamesh_proto import envelope
from novamesh_proto.envelope import Verified
from novamesh_proto.errors import NovaMeshError
from novamesh_proto.identity import PrivateKey
from novamesh_proto.limits import LEASE_MS, RECORD_LIFE_MS
from novamesh_proto.messages import (
    AttachCancel,
    ChunkCheckpoint,
    ClientReceipt,
    Envelope,
    Header,
    JobAssignment,
    JobDecision,
    JobFailure,
    JobId,
    JobTerms,
    NodeId,
    RunningAttempt,
    StreamAck,
)

SENTENCE_BYTES_MAX: Final = 512


@dataclass(frozen=True, slots=True)
class Signer:
    """The node's key, its pool and the coordinator it answers to."""

    key: PrivateKey
    network: str
    coordinator: NodeId

    def header(
        self,
        assignment: Verified[JobAssignment],
        client: NodeId | None,
        now_ms: int,
        life_ms: int = 60_000,
    ) -> Header:
        """A header in reply to an assignment, for the coordinator and the client if known."""
        audience = (self.coordinator,) if client is None else (self.coordinator, client)
        return envelope.header(
            self.key, self.network, audience, now_ms, life_ms, in_reply_to=assignment.id
        )


def key_of(
    message: JobAssignment | StreamAck | ClientReceipt | AttachCancel | RunningAttempt,
) -> AttemptKey:
    """The attempt that a message speaks of."""
    return AttemptKey(message.job, message.attempt, message.fence)


def sign_own_assignment(
    signer: Signer, terms: Verified[JobTerms], now_ms: int
) -> Verified[JobAssignment]:
    """The assignment that a node gives itself for work that was asked of it alone.

    There is one attempt at such a job, so that no keystream is used twice.
    """
    node = signer.key.node_id
    header = envelope.header(
        signer.key, signer.network, (node, terms.issuer), now_ms, in_reply_to=terms.id
    )
    given = JobAssignment(header, JobId(terms.id), node, attempt=1, fence=1, lease_ms=LEASE_MS)
    sealed = envelope.seal(given, signer.key)
    return envelope.open(sealed, JobAssignment, network=signer.network)


def sign_decision(
    signer: Signer,
    assignment: Verified[JobAssignment],
    refusal: NovaMeshError | None,
    now_ms: int,
) -> Envelope:
    """Take an assignment, or say why not."""
    given = assignment.message
    decision = JobDecision(
        header=signer.header(assignment, None, now_ms),
        job=given.job,
        attempt=given.attempt,
        fence=given.fence,
        accepted=refusal is None,
        code="" if refusal is None else refusal.code.value,
        message="" if refusal is None else cut_sentence(refusal.message),
    )
    return envelope.seal(decision, signer.key)


def sign_failure(
    signer: Signer, assignment: Verified[JobAssignment], error: NovaMeshError, now_ms: int
) -> Envelope:
    """Give up an attempt that was taken."""
    given = assignment.message
    failure = JobFailure(
        header=signer.header(assignment, None, now_ms),
        job=given.job,
        attempt=given.attempt,
        fence=given.fence,
        code=error.code.value,
        message=cut_sentence(error.message),
    )
    return envelope.seal(failure, signer.key)


@dataclass(frozen=True, slots=True)
class ChainPoint:
    """A place on an attempt's chain: chunks so far, completion position, head."""

    chunks: int
    position: int
    head: bytes


def sign_checkpoint(
    signer: Signer,
    assignment: Verified[JobAssignment],
    client: NodeId,
    point: ChainPoint,
    *,
    challenge: bytes,
    now_ms: int,
) -> Envelope:
    """Commit to the chain so far, answering the client's newest challenge."""
    given = assignment.message
    checkpoint = ChunkCheckpoint(
        header=signer.header(assignment, client, now_ms, RECORD_LIFE_MS),
        job=given.job,
        attempt=given.attempt,
        fence=given.fence,
        chunks=point.chunks,
        position=point.position,
        chain_head=point.head,
        challenge=challenge,
    )
    return envelope.seal(checkpoint, signer.key)


def cut_sentence(text: str) -> str:
    """A message that fits its field, whole characters only."""
    return text.encode()[:SENTENCE_BYTES_MAX].decode(errors="ignore")
