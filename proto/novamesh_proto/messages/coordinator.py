"""Values of coordinator.proto: what members and the pool's owner ask, and what they are told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from novamesh_proto import limits
from novamesh_proto.limits import Range, Size
from novamesh_proto.messages.envelope import (
    Envelope,
    Header,
    JobIdField,
    NodeIdField,
    Nonce,
    OptionalDigest,
    ProfileField,
)
from novamesh_proto.messages.job import CodeText, Position, Sentence, StreamChunk
from novamesh_proto.messages.ledger import JobState

Label = Annotated[str, Size(0, 64)]
Invite = Annotated[bytes, Size(0, 64)]


@dataclass(frozen=True, slots=True)
class ErrorDetail:
    """A refusal as it travels in trailing metadata."""

    code: CodeText
    message: Annotated[str, Size(0, 2048)]
    hint: Annotated[str, Size(0, 1024)] = ""
    retry_after_ms: int = 0


@dataclass(frozen=True, slots=True)
class JoinCode:
    """Where a pool is, who its coordinator must be, and the invite."""

    address: Annotated[str, Size(1, 255)]
    coordinator: NodeIdField
    network: Annotated[str, Size(1, 64)]
    invite: Invite = b""


@dataclass(frozen=True, slots=True)
class PoolCard:
    """What a pool says of itself."""

    header: Header
    now_ms: int
    version: Label
    open: bool


@dataclass(frozen=True, slots=True)
class JoinClaim:
    """A new member shows its invite."""

    header: Header
    invite: Invite = b""


@dataclass(frozen=True, slots=True)
class ModelsQuery:
    """What does the pool serve?"""

    header: Header


@dataclass(frozen=True, slots=True)
class PoolModel:
    """One model that attached nodes serve now."""

    model_profile: ProfileField
    name: Label
    nodes: int
    free_slots: int
    context_max: Position


@dataclass(frozen=True, slots=True)
class DescriptorsQuery:
    """Whose descriptors may I keep, to find nodes while the coordinator is away?"""

    header: Header
    model_profile: OptionalDigest = b""


@dataclass(frozen=True, slots=True)
class MatchQuery:
    """Who would take this job?"""

    header: Header
    model_profile: ProfileField
    prompt_bytes: Annotated[int, Range(0, limits.BODY_BYTES_MAX)]
    max_tokens: Position
    count: Annotated[int, Range(1, limits.CANDIDATES_MAX)] = limits.CANDIDATES_MAX
    excluded: Annotated[tuple[NodeIdField, ...], Size(0, limits.EXCLUDED_MAX)] = ()


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node that would take the job, with a slot held for two seconds."""

    descriptor: Envelope
    reason: Sentence
    reservation: Nonce


@dataclass(frozen=True, slots=True)
class JobView:
    """One state of a job, as its client sees it."""

    job: JobIdField
    state: JobState
    attempt: int
    node: Annotated[bytes, Size(38, 38, or_empty=True)]
    model_profile: ProfileField
    admitted_at_ms: int
    tokens: int = 0
    code: CodeText = ""
    message: Sentence = ""


@dataclass(frozen=True, slots=True)
class WatchQuery:
    """Follow a job from a chunk on; `attempt` 0 holds nothing yet."""

    header: Header
    job: JobIdField
    attempt: int = 0
    from_chunk: int = 0


@dataclass(frozen=True, slots=True)
class WatchResponse:
    """One event of a job; exactly one field is set."""

    job: JobView | None = None
    assignment: Envelope | None = None
    chunk: StreamChunk | None = None
    checkpoint: Envelope | None = None
    attestation: Envelope | None = None
    relay_receipt: Envelope | None = None
    settlement: Envelope | None = None


@dataclass(frozen=True, slots=True)
class CancelOrder:
    """Stop my job."""

    header: Header
    job: JobIdField


@dataclass(frozen=True, slots=True)
class JobQuery:
    """Where is my job?"""

    header: Header
    job: JobIdField


@dataclass(frozen=True, slots=True)
class JobsQuery:
    """Where are my jobs? Newest first."""

    header: Header
    count: Annotated[int, Range(1, limits.JOBS_LISTED_MAX)] = 50


@dataclass(frozen=True, slots=True)
class NodesQuery:
    """The owner asks who is here."""

    header: Header


@dataclass(frozen=True, slots=True)
class BanOrder:
    """The owner keeps a member out, or lets it in again."""

    header: Header
    member: NodeIdField
    reason: Sentence = ""
    lift: bool = False


@dataclass(frozen=True, slots=True)
class NodeView:
    """A node as the pool's owner sees it."""

    node: NodeIdField
    attached: bool
    models: Annotated[tuple[Label, ...], Size(0, limits.MODELS_MAX)]
    hardware: Annotated[str, Size(0, 128)]
    slots: int
    free_slots: int
    jobs_settled: int
    tokens_settled: int
    witnessed_tokens_per_s: Annotated[float, Range(0.0, 1e9)]
    seen_at_ms: int
    note: Sentence = ""
    jobs_donated: int = 0
    tokens_donated: int = 0
