"""Values of job.proto: terms, sealed body, assignment, and what flows while a node works."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated

from novamesh_proto import limits
from novamesh_proto.limits import Range, Size
from novamesh_proto.messages.envelope import (
    Digest,
    Envelope,
    Header,
    JobIdField,
    NodeIdField,
    OptionalDigest,
    ProfileField,
)

Attempt = Annotated[int, Range(1, 1_000)]
Position = Annotated[int, Range(0, limits.CONTEXT_TOKENS_MAX)]
TokenIds = Annotated[tuple[int, ...], Size(0, limits.CONTEXT_TOKENS_MAX)]
CodeText = Annotated[str, Size(0, 32)]
Sentence = Annotated[str, Size(0, 512)]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen; sampling specification 1."""

    seed_commitment: Digest
    max_tokens: Annotated[int, Range(1, limits.CONTEXT_TOKENS_MAX)]
    version: Annotated[int, Range(1, 1)] = 1
    temperature: Annotated[float, Range(0.0, 100.0)] = 0.0
    top_k: Annotated[int, Range(0, limits.SAMPLING_CANDIDATES)] = 0
    top_p: Annotated[float, Range(1e-6, 1.0)] = 1.0
    min_p: Annotated[float, Range(0.0, 1.0)] = 0.0
    repetition_penalty: Annotated[float, Range(0.01, 100.0)] = 1.0
    stop_token_ids: Annotated[tuple[int, ...], Size(0, limits.STOP_TOKENS_MAX)] = ()
    logprobs: Annotated[int, Range(0, limits.LOGPROBS_MAX)] = 0
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class JobTerms:
    """What the client wants and signs; the job id is the id of the envelope around it."""

    header: Header
    model_profile: ProfileField
    sampling: Sampling
    timeout_ms: Annotated[int, Range(1, limits.JOB_TIMEOUT_MS_MAX)]
    body_digest: Digest
    body_bytes: Annotated[int, Range(1, limits.BODY_BYTES_MAX)]
    key_commitment: Digest
    idempotency_key: Annotated[str, Size(1, 64)]
    parent_job: OptionalDigest = b""
    start_position: Position = 0
    prefix_digest: OptionalDigest = b""


@dataclass(frozen=True, slots=True)
class KeyWrap:
    """The body key, sealed to the HPKE key of one node's descriptor."""

    node: NodeIdField
    descriptor: Digest
    sealed_key: Annotated[bytes, Size(80, 80)]


@dataclass(frozen=True, slots=True)
class SealedJob:
    """A job as it travels: signed terms, sealed body, the body key for at most three nodes."""

    terms: Envelope
    body: Annotated[bytes, Size(1, limits.BODY_BYTES_MAX)]
    wraps: Annotated[tuple[KeyWrap, ...], Size(1, limits.CANDIDATES_MAX)]


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn of a conversation."""

    role: Annotated[str, Size(1, 16)]
    content: Annotated[str, Size(0, limits.BODY_BYTES_MAX)]


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A conversation; the node renders it with the model's own template."""

    messages: Annotated[tuple[ChatMessage, ...], Size(1, limits.CHAT_MESSAGES_MAX)]


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    """Token ids, taken as they are."""

    token_ids: Annotated[tuple[int, ...], Size(1, limits.CONTEXT_TOKENS_MAX)]


@dataclass(frozen=True, slots=True)
class JobBody:
    """What is sealed. Exactly one of `chat`, `text`, `tokens` is set."""

    client_seed: Digest
    response_key: Digest
    chat: ChatPrompt | None = None
    text: Annotated[str, Size(1, limits.BODY_BYTES_MAX)] | None = None
    tokens: TokenPrompt | None = None
    stop: Annotated[
        tuple[Annotated[str, Size(1, limits.STOP_STRING_BYTES_MAX)], ...],
        Size(0, limits.STOP_STRINGS_MAX),
    ] = ()
    prefix_token_ids: TokenIds = ()


@dataclass(frozen=True, slots=True)
class JobAssignment:
    """The coordinator gives one attempt of a job to one node."""

    header: Header
    job: JobIdField
    node: NodeIdField
    attempt: Attempt
    fence: Annotated[int, Range(1, 2**63 - 1)]
    lease_ms: Annotated[int, Range(1, limits.JOB_TIMEOUT_MS_MAX)]


@dataclass(frozen=True, slots=True)
class JobDecision:
    """The node's answer to an assignment; `code` and `message` say why not."""

    header: Header
    job: JobIdField
    attempt: Attempt
    fence: int
    accepted: bool
    code: CodeText = ""
    message: Sentence = ""


@dataclass(frozen=True, slots=True)
class JobFailure:
    """The node gives up an attempt that it had taken."""

    header: Header
    job: JobIdField
    attempt: Attempt
    fence: int
    code: CodeText
    message: Sentence = ""


@dataclass(frozen=True, slots=True)
class JobProgress:
    """A sign of work that is not yet a token."""

    job: JobIdField
    attempt: Attempt
    fence: int
    prompt_tokens_done: int


@dataclass(frozen=True, slots=True)
class StreamChunk:
    """One sealed piece of an answer; `tokens` is in the clear and authenticated."""

    index: int
    tokens: Annotated[int, Range(0, limits.CHUNK_TOKENS_MAX)]
    final: bool
    ciphertext: Annotated[bytes, Size(32, limits.CHUNK_BYTES_MAX)]


@dataclass(frozen=True, slots=True)
class AttemptChunk:
    """A chunk with the attempt it belongs to."""

    job: JobIdField
    attempt: Attempt
    fence: int
    chunk: StreamChunk


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A candidate token and the natural logarithm of its probability before temperature."""

    token_id: int
    logprob: Annotated[float, Range(-1e9, 1e-3)]


@dataclass(frozen=True, slots=True)
class PositionLogprobs:
    """The chosen token and the best candidates at one position, best first."""

    chosen: TokenLogprob
    top: Annotated[tuple[TokenLogprob, ...], Size(0, limits.LOGPROBS_MAX)] = ()


class FinishReason(IntEnum):
    """Why an answer ended; UNSPECIFIED while it goes on."""

    UNSPECIFIED = 0
    STOP = 1
    LENGTH = 2
    CANCELLED = 3
    FAILED = 4


@dataclass(frozen=True, slots=True)
class ChunkBody:
    """What a chunk holds once opened."""

    token_ids: Annotated[tuple[int, ...], Size(0, limits.CHUNK_TOKENS_MAX)] = ()
    text: Annotated[str, Size(0, limits.CHUNK_BYTES_MAX)] = ""
    logprobs: Annotated[tuple[PositionLogprobs, ...], Size(0, limits.CHUNK_TOKENS_MAX)] = ()
    finish: FinishReason = FinishReason.UNSPECIFIED


@dataclass(frozen=True, slots=True)
class ChunkCheckpoint:
    """The node commits to the chain so far."""

    header: Header
    job: JobIdField
    attempt: Attempt
    fence: int
    chunks: int
    position: Position
    chain_head: Digest
    challenge: Annotated[bytes, Size(16, 16, or_empty=True)] = b""


@dataclass(frozen=True, slots=True)
class StreamAck:
    """The client has received the chain so far and sends a fresh challenge."""

    header: Header
    job: JobIdField
    attempt: Attempt
    fence: int
    chunks: int
    position: Position
    chain_head: Digest
    challenge: Annotated[bytes, Size(16, 16)]
