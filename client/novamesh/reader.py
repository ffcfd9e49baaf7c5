"""Read one job's events into its answer and its evidence. Pure: events and times in, steps out.

Rules: an assignment must be the coordinator's and name a candidate the client wrapped the key for;
chunks open in order, each once; a checkpoint must commit to the chain as it was received, and each
one is acknowledged with a fresh challenge; the attestation must fit terms, assignment and every
byte received. A new attempt begins a new chain and is taken only while nothing of an older one was
delivered. What breaks a rule raises; nothing is guessed. Sending acks is the caller's business. Of
a job that ended badly what it brought, and what proves that, is told too: an answer may go on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from novamesh.completion import Piece
from novamesh.conclusion import Conclusion, failure_of, lost_answer
from novamesh.job_records import JobRecord
from novamesh.received import ReceivedAttempt
from novamesh_proto import attestation, envelope
from novamesh_proto.attestation import Witness
from novamesh_proto.envelope import Signable, Verified
from novamesh_proto.errors import Code, NovaMeshError, PeerError
from novamesh_proto.evidence import VerifiedReceipt, check_evidence
from novamesh_proto.identity import PrivateKey, format_node_id, short
from novamesh_proto.limits import RECORD_LIFE_MS
from novamesh_proto.messages import (
    ChunkCheckpoint,
    ClientReceipt,
    Envelope,
    FinishReason,
    Header,
    InferenceAttestation,
    JobAssignment,
    JobPath,
    JobState,
    JobView,
    NodeId,
    ReceiptVerdict,
    RelayReceipt,
    Settlement,
    StreamAck,
    StreamChunk,
    WatchResponse,
)
from novamesh_proto.receipt import Receipt

T = TypeVar("T", bound=Signable)

CHALLENGE_BYTES: Final = 16
_SECOND_US: Final = 1_000_000
_WHOLE: Final = frozenset({FinishReason.STOP, FinishReason.LENGTH})
_ANOTHER: Final = "attests another answer than the one it sent"


@dataclass(frozen=True, slots=True)
class Step:
    """What one event leads to: text to deliver, an envelope to send, the end."""

    piece: Piece | None = None
    ack: Envelope | None = None
    receipt: Envelope | None = None
    view: JobView | None = None


class AnswerReader:
    """Follows one job from its first event to its last. One owner, one job."""

    def __init__(
        self,
        record: JobRecord,
        key: PrivateKey,
        coordinator: NodeId,
        started_s: float,
        random: Callable[[int], bytes],
    ) -> None:
        """`started_s`: monotonic time of the request; `random`: bytes nobody can foresee."""
        self._record = record
        self._key = key
        self._coordinator = coordinator
        self._network = record.terms.message.header.network
        self._started_s = started_s
        self._random = random
        self._attempt: ReceivedAttempt | None = None
        self._attestation: Verified[InferenceAttestation] | None = None
        self._client_receipt: Verified[ClientReceipt] | None = None
        self._relay_receipt: Verified[RelayReceipt] | None = None
        self._settlement: Verified[Settlement] | None = None
        self.view: JobView | None = None
        self.path = JobPath.RELAYED  # which way chunks come now

    @property
    def attempt(self) -> int:
        """Attempt at work; 0 before the first."""
        return self._attempt.assignment.message.attempt if self._attempt else 0

    @property
    def chunks(self) -> int:
        """Chunks of that attempt that are here."""
        return self._attempt.opener.chunks if self._attempt else 0

    @property
    def delivered(self) -> bool:
        """Whether any part of the answer has reached the caller."""
        return self._attempt is not None and bool(self._attempt.token_ids)

    @property
    def attested(self) -> bool:
        """Whether the whole answer came from its node itself, and is proved without the pool."""
        receipt, claim = self._client_receipt, self._attestation
        if receipt is None or claim is None or self.path is JobPath.RELAYED:
            return False
        return receipt.message.verdict is ReceiptVerdict.OK and claim.message.finish in _WHOLE

    @property
    def node(self) -> NodeId | None:
        """Who worked on it, as far as this is known."""
        return self._attempt.node if self._attempt else None

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """What was delivered."""
        return tuple(self._attempt.pieces) if self._attempt else ()

    @property
    def ttft_us(self) -> int:
        """From the request to the first tokens, µs."""
        return self._attempt.times_us()[0] if self._attempt else 0

    @property
    def ended(self) -> bool:
        """Whether the job has reached its terminal state."""
        return self.view is not None and self.view.state.terminal

    def take(self, event: WatchResponse, now_ms: int, now_s: float) -> Step:
        """Take the next event.

        Args:
            event: It.
            now_ms: The wall clock, to date what is signed.
            now_s: The monotonic clock, to measure.

        Raises:
            NovaMeshError: what the coordinator did wrong.
            PeerError: what the node did wrong.
        """
        if event.job is not None:
            return self._take_view(event.job)
        if event.assignment is not None:
            return self._take_assignment(event.assignment)
        if event.chunk is not None:
            return self._take_chunk(event.chunk, round((now_s - self._started_s) * _SECOND_US))
        if event.checkpoint is not None:
            return self._take_checkpoint(event.checkpoint, now_ms)
        if event.attestation is not None:
            return self._take_attestation(event.attestation, now_ms)
        if event.relay_receipt is not None:
            self._relay_receipt = self._open(event.relay_receipt, RelayReceipt, self._coordinator)
        if event.settlement is not None:
            self._settlement = self._open(event.settlement, Settlement, self._coordinator)
        return Step()

    def _take_view(self, view: JobView) -> Step:
        if view.job != self._record.job:
            raise NovaMeshError(Code.CORRUPT, "the coordinator told of another job")
        self.view = view
        return Step(view=view)

    def _take_assignment(self, sealed: Envelope) -> Step:
        opened = self._open(sealed, JobAssignment, self._coordinator)
        given, current = opened.message, self._attempt
        if current is not None and opened.id == current.assignment.id:
            return Step()  # told again after a broken connection
        if given.job != self._record.job or given.attempt <= self.attempt:
            raise NovaMeshError(Code.CORRUPT, "the coordinator assigned another job or attempt")
        if self.delivered:
            raise NovaMeshError(
                Code.NODE_LOST,
                "the coordinator began the answer again after its first token",
                "run the job again; the tokens so far are from the first attempt",
            )
        descriptor = self._record.candidate(given.node)
        if descriptor is None:
            raise NovaMeshError(
                Code.CORRUPT, f"the coordinator chose {short(given.node)}, which was no candidate"
            )
        self._attempt = ReceivedAttempt(self._record, opened, descriptor)
        return Step()

    def _take_chunk(self, chunk: StreamChunk, at_us: int) -> Step:
        attempt = self._require_attempt("a chunk")
        if chunk.index < attempt.opener.chunks:
            return Step()  # told again after a broken connection
        return Step(piece=attempt.take_chunk(chunk, at_us))

    def _take_checkpoint(self, sealed: Envelope, now_ms: int) -> Step:
        attempt = self._require_attempt("a checkpoint")
        opened = self._open(sealed, ChunkCheckpoint, attempt.node)
        if not attempt.take_checkpoint(opened):
            return Step()
        given = attempt.assignment.message
        ack = StreamAck(
            header=self._header(now_ms, opened.id, attempt.node),
            job=given.job,
            attempt=given.attempt,
            fence=given.fence,
            chunks=attempt.opener.chunks,
            position=attempt.position,
            chain_head=attempt.opener.head,
            challenge=self._random(CHALLENGE_BYTES),
        )
        attempt.acks.append(ack)
        return Step(ack=envelope.seal(ack, self._key))

    def _take_attestation(self, sealed: Envelope, now_ms: int) -> Step:
        attempt = self._attempt
        if attempt is None or self._attestation is not None:
            return Step()  # told again, or all that the pool still holds of the answer
        opened = self._open(sealed, InferenceAttestation, attempt.node)
        attestation.check_attestation(opened, self._record.terms, attempt.assignment)
        self._attestation = opened
        given = attempt.assignment.message
        ttft_us, total_us = attempt.times_us()
        receipt = ClientReceipt(
            header=self._header(now_ms, opened.id, attempt.node, RECORD_LIFE_MS),
            job=given.job,
            attempt=given.attempt,
            fence=given.fence,
            chain_head=attempt.opener.head,
            chunks=attempt.opener.chunks,
            completion_tokens=attempt.opener.position,
            ttft_us=ttft_us,
            total_us=total_us,
            burst_tokens=attestation.burst_tokens(attempt.arrivals, total_us),
            verdict=attempt.verdict(opened.message),
            path=self.path,
        )
        signed = envelope.seal(receipt, self._key)
        self._client_receipt = envelope.open(signed, ClientReceipt, network=self._network)
        return Step(receipt=signed)

    def conclude(self) -> Conclusion:
        """The whole answer and its evidence, once the job has ended well.

        Raises:
            NovaMeshError: why the job ended badly, or what its proof lacks.
        """
        view = self.view
        if not self.attested and (view is None or not view.state.terminal):
            raise NovaMeshError(Code.UNAVAILABLE, "the job's events ended before the job did")
        if not self.attested and view is not None and view.state is not JobState.SETTLED:
            raise failure_of(view)
        attempt = self._attempt
        if attempt is None:
            raise lost_answer()
        if self._attestation is None or self._client_receipt is None:
            raise NovaMeshError(Code.CORRUPT, "the job was settled without an attestation")
        verdict = self._client_receipt.message.verdict
        if verdict is ReceiptVerdict.INCOMPLETE:
            raise lost_answer()
        if verdict is not ReceiptVerdict.OK:
            raise attempt.accuse(Code.CORRUPT, _ANOTHER)
        return Conclusion(
            attestation=self._attestation,
            client_receipt=self._client_receipt,
            pieces=tuple(attempt.pieces),
            findings=attestation.findings(self._attestation.message, self._witness(attempt)),
            proof=self._prove(attempt),
            receipt=self._receipt(attempt),
        )

    def section(self) -> Receipt:
        """What proves the part of an answer that a job brought which ended badly.

        Where the node signed nothing, only that it was asked.

        Raises:
            PeerError: CORRUPT if the node attests another part than it sent.
            NovaMeshError: CORRUPT if the proof does not hold together.
        """
        attempt = self._require_attempt("a part")
        said = self._client_receipt
        if said is not None and said.message.verdict is ReceiptVerdict.MISMATCH:
            raise attempt.accuse(Code.CORRUPT, _ANOTHER)
        if said is None or said.message.verdict is not ReceiptVerdict.OK:
            # It attests more than came here, or nothing: what came is proved by the checkpoint.
            self._attestation = self._client_receipt = None
        claim = self._attestation or attempt.checkpoint
        settled = self._settlement
        if settled is None or claim is None or claim.id not in settled.message.evidence:
            self._settlement = self._relay_receipt = None
        self._prove(attempt)
        return self._receipt(attempt)

    def _witness(self, attempt: ReceivedAttempt) -> Witness:
        profile = self._record.terms.message.model_profile
        offers = attempt.descriptor.message.models
        active = next((one.active_bytes for one in offers if one.model_profile == profile), 0)
        claim = self._attestation
        return Witness(
            client=self._client_receipt.message if self._client_receipt else None,
            relay=self._relay_receipt.message if self._relay_receipt else None,
            roofline_tokens_per_s=(
                attestation.roofline(claim.message.hardware, active) if claim else None
            ),
            acks=tuple(attempt.acks),
            checkpoints=tuple(attempt.checkpoints),
        )

    def _prove(self, attempt: ReceivedAttempt) -> VerifiedReceipt:
        """What is kept; it is never something that would not verify later."""
        parts = VerifiedReceipt(
            descriptor=attempt.descriptor,
            terms=self._record.terms,
            assignment=attempt.assignment,
            checkpoint=attempt.checkpoint,
            attestation=self._attestation,
            relay_receipt=self._relay_receipt,
            client_receipt=self._client_receipt,
            settlement=self._settlement,
        )
        try:
            check_evidence(parts)
        except NovaMeshError as error:
            raise NovaMeshError(
                Code.CORRUPT,
                f"the proof of this answer does not hold together: {error.message}",
                "do not trust this answer; run the job again, and tell the pool's owner",
            ) from error
        return parts

    def _receipt(self, attempt: ReceivedAttempt) -> Receipt:
        return Receipt(
            descriptor=attempt.descriptor.envelope,
            terms=self._record.terms.envelope,
            assignment=attempt.assignment.envelope,
            checkpoint=_envelope(attempt.checkpoint),
            attestation=_envelope(self._attestation),
            relay_receipt=_envelope(self._relay_receipt),
            client_receipt=_envelope(self._client_receipt),
            settlement=_envelope(self._settlement),
            earlier=self._record.earlier,
        )

    def _open(self, sealed: Envelope, cls: type[T], issuer: NodeId) -> Verified[T]:
        """A verified message of the one party that may say this, addressed to us."""
        opened = envelope.open(sealed, cls, network=self._network, audience=self._key.node_id)
        if opened.issuer != issuer:
            raise PeerError(
                Code.FORBIDDEN,
                f"{cls.__name__} is signed by {short(opened.issuer)} instead of {short(issuer)}",
                format_node_id(opened.issuer),
            )
        return opened

    def _header(
        self, now_ms: int, in_reply_to: bytes, node: NodeId, life_ms: int = 60_000
    ) -> Header:
        # Work without a coordinator is assigned by the node itself.
        audience = tuple(dict.fromkeys((self._coordinator, node)))
        return envelope.header(
            self._key, self._network, audience, now_ms, life_ms, in_reply_to=in_reply_to
        )

    def _require_attempt(self, what: str) -> ReceivedAttempt:
        if self._attempt is None:
            raise NovaMeshError(Code.CORRUPT, f"the coordinator sent {what} before any assignment")
        return self._attempt


def _envelope(part: Verified[T] | None) -> Envelope | None:
    return None if part is None else part.envelope
