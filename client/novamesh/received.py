"""One attempt at a job as it arrives: its chunks opened, its chain followed, its times taken.

Rules: chunks open in order, each once; a checkpoint must commit to the chain as it was received;
the verdict compares the attestation with every byte that came. Everything kept is bounded by the
tokens the terms allow. Who signed what is checked by the reader, before it gets here.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from novamesh.completion import Piece
from novamesh.job_records import JobRecord
from novamesh_proto import sealing
from novamesh_proto.envelope import Verified
from novamesh_proto.errors import Code, PeerError
from novamesh_proto.identity import format_node_id, short
from novamesh_proto.messages import (
    ChunkCheckpoint,
    FinishReason,
    InferenceAttestation,
    JobAssignment,
    NodeDescriptor,
    NodeId,
    ReceiptVerdict,
    StreamAck,
    StreamChunk,
)

HEADS_KEPT: Final = 1024  # chain heads a late checkpoint may still name
WITNESSED_MAX: Final = 4096  # checkpoints and acks kept for the witness rules


@dataclass(slots=True)
class ReceivedAttempt:
    """What has arrived of one attempt."""

    record: JobRecord = field(repr=False)
    assignment: Verified[JobAssignment]
    descriptor: Verified[NodeDescriptor]
    opener: sealing.ChunkOpener = field(init=False)
    token_ids: list[int] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)
    arrivals: list[tuple[int, int]] = field(default_factory=list)  # µs since the request, tokens
    finish: FinishReason = FinishReason.UNSPECIFIED
    checkpoint: Verified[ChunkCheckpoint] | None = None
    checkpoints: deque[ChunkCheckpoint] = field(default_factory=lambda: deque(maxlen=WITNESSED_MAX))
    acks: deque[StreamAck] = field(default_factory=lambda: deque(maxlen=WITNESSED_MAX))
    _heads: deque[tuple[int, bytes]] = field(default_factory=lambda: deque(maxlen=HEADS_KEPT))

    def __post_init__(self) -> None:
        given = self.assignment.message
        self.opener = sealing.ChunkOpener(
            self.record.response_key, given.job, given.attempt, given.fence, given.node
        )
        self._heads.append((0, self.opener.head))

    @property
    def node(self) -> NodeId:
        """Who works on it."""
        return self.assignment.message.node

    @property
    def position(self) -> int:
        """Completion position so far, a forced prefix included."""
        return self.record.terms.message.start_position + self.opener.position

    def take_chunk(self, chunk: StreamChunk, at_us: int) -> Piece:
        """Open the next chunk, which came `at_us` after the request.

        Raises:
            NovaMeshError: CORRUPT out of order, CANNOT_OPEN if it was changed.
            PeerError: if the node itself breaks the rules.
        """
        body = self.opener.open(chunk)
        if self.position > self.record.terms.message.sampling.max_tokens:
            raise self.accuse(Code.CORRUPT, "sent more tokens than the terms allow")
        self._heads.append((self.opener.chunks, self.opener.head))
        piece = Piece(body.text, body.token_ids, body.logprobs, body.finish)
        self.token_ids += body.token_ids
        self.pieces.append(piece)
        self.arrivals.append((at_us, chunk.tokens))
        self.finish = body.finish
        return piece

    def take_checkpoint(self, opened: Verified[ChunkCheckpoint]) -> bool:
        """Hold a checkpoint against the chain; whether it is new.

        Raises:
            PeerError: STALE of another attempt, CORRUPT of another answer.
        """
        point, given = opened.message, self.assignment.message
        if (point.job, point.attempt, point.fence) != (given.job, given.attempt, given.fence):
            raise self.accuse(Code.STALE, "signed a checkpoint of another attempt")
        last = self.checkpoint
        if (point.chunks, point.chain_head) not in self._heads:
            raise self.accuse(Code.CORRUPT, "signed a checkpoint of an answer it did not send")
        if last is not None and (opened.id == last.id or point.chunks < last.message.chunks):
            return False  # told again after a broken connection
        self.checkpoint = opened
        self.checkpoints.append(point)
        return True

    def verdict(self, claim: InferenceAttestation) -> ReceiptVerdict:
        """What an attestation is worth, held against everything that arrived."""
        opener = self.opener
        if not opener.finished:
            return ReceiptVerdict.INCOMPLETE
        salt = sealing.salt(self.record.response_key, self.record.job)
        received = (
            opener.head,
            opener.chunks,
            opener.position,
            self.finish,
            sealing.output_digest(salt, self.token_ids),
        )
        claimed = (
            claim.chain_head,
            claim.chunks,
            claim.completion_tokens,
            claim.finish,
            claim.output_digest,
        )
        return ReceiptVerdict.OK if received == claimed else ReceiptVerdict.MISMATCH

    def times_us(self) -> tuple[int, int]:
        """From the request to the first tokens and to the last chunk, µs."""
        last = self.arrivals[-1][0] if self.arrivals else 0
        first = next((at_us for at_us, tokens in self.arrivals if tokens), last)
        return first, last

    def accuse(self, code: Code, problem: str) -> PeerError:
        """The error for what this attempt's node did wrong."""
        return PeerError(
            code,
            f"node {short(self.node)} {problem}",
            format_node_id(self.node),
            "do not trust this answer; run the job again, another node may get it",
        )
