"""One attempt's answer on its way out: engine outputs in, sealed and signed messages out.

The first token leaves at once. Then a chunk leaves when it is full or after a fifth of the time
that the answer has taken so far, within FLUSH_LEAST_MS and FLUSH_MS: messages stay few, and no
chunk holds so much of a short answer that its speed could not be told. A checkpoint follows every
32 tokens or second; the final chunk is followed by the attestation.

Rules: no I/O and no clock: every call is told the time; one sealer, so one keystream, for an
attempt; all that is made is kept in a bounded tail for the next session. Plaintext is held only
until it is sealed; token ids are held until they are digested.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from novamesh_engine import request as engine
from novamesh_engine.request import StepOutput
from novamesh_node.admission import Admitted
from novamesh_node.attestor import Machine, Outcome, sign_attestation
from novamesh_node.chain_points import ChainPoints
from novamesh_node.statements import ChainPoint, Signer, key_of, sign_checkpoint
from novamesh_node.tail import Tail
from novamesh_proto import envelope, sealing
from novamesh_proto.envelope import Verified
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.limits import CHECKPOINT_MS, CHECKPOINT_TOKENS, CHUNK_TOKENS_MAX
from novamesh_proto.messages import (
    AttachRequest,
    AttemptChunk,
    ChunkBody,
    ClientReceipt,
    FinishReason,
    JobBody,
    PositionLogprobs,
    StreamAck,
    TokenLogprob,
)

FLUSH_MS: Final = 50  # a reader does not see less than this
FLUSH_LEAST_MS: Final = 5
FLUSH_SHARE: Final = 4  # of the time so far before this chunk: a fifth of the time with it
CHUNK_TOKENS: Final = 32
CHUNK_CONTENT_BYTES: Final = 8_000  # estimated; a chunk's limit is twice that
_TOKEN_BYTES: Final = 6
_LOGPROB_BYTES: Final = 18
_LOGPROB_LEAST: Final = -1e9

_FINISH: Final = {
    engine.FinishReason.STOP: FinishReason.STOP,
    engine.FinishReason.LENGTH: FinishReason.LENGTH,
    engine.FinishReason.ABORTED: FinishReason.CANCELLED,
    engine.FinishReason.ERROR: FinishReason.FAILED,
}
assert CHUNK_TOKENS <= CHUNK_TOKENS_MAX


@dataclass(slots=True)
class _Draft:
    """What the next chunk will hold."""

    token_ids: list[int] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    logprobs: list[PositionLogprobs] = field(default_factory=list)
    size: int = 0

    def add(self, output: StepOutput) -> None:
        """Take what one engine step added."""
        logprobs = [_logprobs(each) for each in output.logprobs]
        self.token_ids += output.token_ids
        self.text.append(output.text)
        self.logprobs += logprobs
        candidates = sum(1 + len(each.top) for each in logprobs)
        self.size += _TOKEN_BYTES * len(output.token_ids) + len(output.text.encode())
        self.size += _LOGPROB_BYTES * candidates

    @property
    def full(self) -> bool:
        """Whether it should leave as it is."""
        return len(self.token_ids) >= CHUNK_TOKENS or self.size >= CHUNK_CONTENT_BYTES

    def body(self, finish: FinishReason) -> ChunkBody:
        """What the chunk holds."""
        return ChunkBody(tuple(self.token_ids), "".join(self.text), tuple(self.logprobs), finish)


@dataclass(frozen=True, slots=True)
class Usage:
    """What the engine's thread measured of one attempt, beside the engine's own timing."""

    energy_mj: int = 0
    batch_size_max: int = 1


@dataclass(frozen=True, slots=True)
class Work:
    """An admitted job, opened: what an answer is made for."""

    admitted: Admitted
    body: JobBody = field(repr=False)
    prompt: tuple[int, ...] = field(repr=False)
    before_us: int = 0


class Answer:
    """The outgoing half of one attempt."""

    def __init__(self, work: Work, signer: Signer, machine: Machine, now_ms: int) -> None:
        self.key = key_of(work.admitted.assignment.message)
        self.tail = Tail()
        self.ended = False
        self._work = work
        self._signer = signer
        self._machine = machine
        self._sealer = sealing.ChunkSealer(
            work.body.response_key, self.key.job, self.key.attempt, self.key.fence,
            signer.key.node_id,
        )  # fmt: skip
        self._start = work.admitted.terms.message.start_position
        self._points = ChainPoints()
        self._points.add(0, self._start, self._sealer.head)
        self._attestation = b""  # its id, once there is one
        self._draft = _Draft()
        self._output: list[int] = []
        self._challenge = b""
        self._acknowledged = 0
        self._first_ms: int | None = None
        self._flushed_ms = now_ms
        self._checkpoint_ms = now_ms
        self._checkpoint_tokens = 0

    @property
    def admitted(self) -> Admitted:
        """What it answers."""
        return self._work.admitted

    @property
    def chunks(self) -> int:
        """Chunks sealed so far."""
        return self._sealer.chunks

    @property
    def tokens(self) -> int:
        """Completion tokens sealed so far, the forced prefix not counted."""
        return self._sealer.position

    @property
    def due_ms(self) -> int | None:
        """Monotonic time of the next `tick`; None while nothing waits."""
        if self.ended or not (self._draft.token_ids or self._draft.size):
            return None
        if self._first_ms is None:
            return self._flushed_ms
        so_far_ms = self._flushed_ms - self._first_ms
        return self._flushed_ms + min(FLUSH_MS, max(FLUSH_LEAST_MS, so_far_ms // FLUSH_SHARE))

    def push(
        self, output: StepOutput, usage: Usage, now_ms: int, wall_ms: int
    ) -> tuple[AttachRequest, ...]:
        """Take one engine output; what is to be sent now.

        `now_ms` is monotonic, `wall_ms` dates what is signed.
        """
        if self.ended:
            return ()
        self._draft.add(output)
        self._output += output.token_ids
        if output.finish is not None:
            return self._finish(output, usage, wall_ms)
        return self.tick(now_ms, wall_ms)

    def tick(self, now_ms: int, wall_ms: int) -> tuple[AttachRequest, ...]:
        """What is due by now."""
        due = self.due_ms
        if due is None or (now_ms < due and not self._draft.full):
            return ()
        self._flushed_ms = now_ms
        self._first_ms = now_ms if self._first_ms is None else self._first_ms
        made = [self._seal(FinishReason.UNSPECIFIED)]
        tokens = self.tokens - self._checkpoint_tokens
        if tokens >= CHECKPOINT_TOKENS or now_ms >= self._checkpoint_ms + CHECKPOINT_MS:
            self._checkpoint_ms, self._checkpoint_tokens = now_ms, self.tokens
            made.append(self._checkpoint(wall_ms))
        return tuple(made)

    def acknowledge(self, ack: Verified[StreamAck]) -> None:
        """The client holds the chain so far: the next checkpoint answers its challenge.

        Raises:
            NovaMeshError: FORBIDDEN if another than the client signed it, STALE for chunks that
                were never sent and for an ack that comes too late, CORRUPT for another chain.
        """
        said = ack.message
        if ack.issuer != self._work.admitted.terms.issuer:
            raise NovaMeshError(Code.FORBIDDEN, "this ack was not signed by the job's client")
        if said.chunks > self.chunks:
            raise NovaMeshError(Code.STALE, "this ack names chunks that were never sent")
        if said.chunks < self._acknowledged:
            raise NovaMeshError(Code.STALE, "this ack is older than the one before")
        if not self._points.holds(said.chunks, said.position, said.chain_head):
            raise NovaMeshError(Code.CORRUPT, "this ack does not fit the chain that was sent")
        self._acknowledged = said.chunks
        self._challenge = said.challenge

    def fits(self, receipt: Verified[ClientReceipt]) -> bool:
        """Whether a receipt speaks of this answer, ended, to its last chunk and token."""
        said = receipt.message
        return (
            self.ended
            and receipt.issuer == self._work.admitted.terms.issuer
            and said.header.in_reply_to == self._attestation
            and said.chunks == self.chunks
            and self._points.holds(
                said.chunks, self._start + said.completion_tokens, said.chain_head
            )
        )

    def _finish(self, output: StepOutput, usage: Usage, wall_ms: int) -> tuple[AttachRequest, ...]:
        assert output.finish is not None
        assert output.timing is not None
        finish = _FINISH[output.finish]
        chunk = self._seal(finish)
        outcome = Outcome(
            salt=sealing.salt(self._work.body.response_key, self.key.job),
            prompt=self._work.prompt,
            output=tuple(self._output),
            chain_head=self._sealer.head,
            chunks=self.chunks,
            finish=finish,
            timing=output.timing,
            before_us=self._work.before_us,
            energy_mj=usage.energy_mj,
            batch_size_max=usage.batch_size_max,
        )
        admitted = self._work.admitted
        signed = sign_attestation(
            self._signer,
            admitted.assignment,
            admitted.terms,
            self._machine,
            outcome,
            now_ms=wall_ms,
        )
        self._attestation = envelope.message_id(signed)
        attestation = AttachRequest(attestation=signed)
        self.tail.append(attestation, self.chunks)
        self.ended = True
        self._output.clear()
        return chunk, attestation

    def _seal(self, finish: FinishReason) -> AttachRequest:
        body, self._draft = self._draft.body(finish), _Draft()
        chunk = self._sealer.seal(body, final=finish is not FinishReason.UNSPECIFIED)
        key = self.key
        message = AttachRequest(chunk=AttemptChunk(key.job, key.attempt, key.fence, chunk))
        self.tail.append(message, self.chunks)
        self._points.add(self.chunks, self._start + self.tokens, self._sealer.head)
        return message

    def _checkpoint(self, wall_ms: int) -> AttachRequest:
        admitted = self._work.admitted
        point = ChainPoint(self.chunks, self._start + self.tokens, self._sealer.head)
        signed = sign_checkpoint(
            self._signer,
            admitted.assignment,
            admitted.terms.issuer,
            point,
            challenge=self._challenge,
            now_ms=wall_ms,
        )
        message = AttachRequest(checkpoint=signed)
        self.tail.append(message, self.chunks)
        return message


def _logprobs(chosen: engine.TokenLogprob) -> PositionLogprobs:
    top = tuple(TokenLogprob(token, _bounded(value)) for token, value in chosen.top)
    return PositionLogprobs(TokenLogprob(chosen.token_id, _bounded(chosen.logprob)), top)


def _bounded(logprob: float) -> float:
    """A probability that underflowed to zero still fits the wire."""
    return max(_LOGPROB_LEAST, min(0.0, logprob))
