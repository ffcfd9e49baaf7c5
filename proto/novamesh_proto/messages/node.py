"""Values of node.proto: a node's descriptor and the messages of its Attach stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from novamesh_proto import limits
from novamesh_proto.limits import Range, Size
from novamesh_proto.messages.attestation import Hardware
from novamesh_proto.messages.envelope import (
    Digest,
    Envelope,
    Header,
    JobIdField,
    Nonce,
    OptionalDigest,
    ProfileField,
)
from novamesh_proto.messages.job import (
    Attempt,
    AttemptChunk,
    CodeText,
    JobProgress,
    Position,
    SealedJob,
    Sentence,
)

Speed = Annotated[float, Range(0.0, 1e9)]
Endpoint = Annotated[str, Size(1, limits.ENDPOINT_BYTES_MAX)]


@dataclass(frozen=True, slots=True)
class ModelOffer:
    """A model a node serves; the digest is its name, `name` a label that nobody believes."""

    model_profile: ProfileField
    name: Annotated[str, Size(1, 64)]
    context_max: Position
    decode_tokens_per_s: Speed
    prefill_tokens_per_s: Speed
    active_bytes: int


@dataclass(frozen=True, slots=True)
class NodeDescriptor:
    """A node's signed advertisement; the newest sequence wins."""

    header: Header
    sequence: Annotated[int, Range(1, 2**63 - 1)]
    hpke_key: Digest
    models: Annotated[tuple[ModelOffer, ...], Size(0, limits.MODELS_MAX)]
    hardware: Hardware
    engine_build: Annotated[str, Size(1, 128)]
    slots: Annotated[int, Range(1, 4096)]
    endpoints: Annotated[tuple[Endpoint, ...], Size(0, limits.ENDPOINTS_MAX)] = ()
    free_slots: Annotated[int, Range(0, 4096)] = 0
    policy_digest: OptionalDigest = b""


@dataclass(frozen=True, slots=True)
class RunningAttempt:
    """An attempt at work; `chunks`: what the node has made, or what the coordinator wants next."""

    job: JobIdField
    attempt: Attempt
    fence: int
    chunks: int


@dataclass(frozen=True, slots=True)
class AttachHello:
    """Opens a session: signed over the server's nonce and its certificate's key."""

    header: Header
    nonce: Digest
    certificate_key_digest: Digest
    descriptor: Envelope
    running: Annotated[tuple[RunningAttempt, ...], Size(0, limits.RUNNING_MAX)] = ()


@dataclass(frozen=True, slots=True)
class NodeLoad:
    """How much more a node takes now, and why none."""

    free_slots: Annotated[int, Range(0, 4096)]
    accepting: bool
    reason: Sentence = ""


@dataclass(frozen=True, slots=True)
class IdleQuery:
    """A node asks why it gets no work."""


@dataclass(frozen=True, slots=True)
class IdleReason:
    """One reason for which a node got no work, and how often."""

    reason: Sentence
    count: int


@dataclass(frozen=True, slots=True)
class IdleReport:
    """Why a node got no work since it attached, most frequent reason first."""

    considered: int
    chosen: int
    reasons: Annotated[tuple[IdleReason, ...], Size(0, limits.IDLE_REASONS_MAX)] = ()


@dataclass(frozen=True, slots=True)
class Donation:
    """Work that a client asked of this node without the coordinator: logged, not paid."""

    terms: Envelope
    assignment: Envelope
    attestation: Envelope
    receipt: Envelope
    descriptor: Envelope


@dataclass(frozen=True, slots=True)
class Probe:
    """Whether a node still listens; it sends the nonce back."""

    nonce: Nonce


@dataclass(frozen=True, slots=True)
class AttachRequest:
    """What a node sends; exactly one field is set."""

    hello: Envelope | None = None
    decision: Envelope | None = None
    progress: JobProgress | None = None
    chunk: AttemptChunk | None = None
    checkpoint: Envelope | None = None
    attestation: Envelope | None = None
    failure: Envelope | None = None
    load: NodeLoad | None = None
    descriptor: Envelope | None = None
    idle_query: IdleQuery | None = None
    witness: Envelope | None = None
    donation: Donation | None = None
    echo: Probe | None = None


@dataclass(frozen=True, slots=True)
class AttachChallenge:
    """The server's first message: its nonce and its wall clock."""

    nonce: Digest
    now_ms: int


@dataclass(frozen=True, slots=True)
class AttachWelcome:
    """The session is open; attempts not named in `resume` are abandoned."""

    session: Nonce
    resume: Annotated[tuple[RunningAttempt, ...], Size(0, limits.RUNNING_MAX)] = ()


@dataclass(frozen=True, slots=True)
class AttachAssignment:
    """Work for the node: the signed assignment and the job with this node's wrap only."""

    assignment: Envelope
    job: SealedJob


@dataclass(frozen=True, slots=True)
class AttachCancel:
    """Stop an attempt; `code` says why."""

    job: JobIdField
    attempt: Attempt
    fence: int
    code: CodeText


@dataclass(frozen=True, slots=True)
class AttachGoodbye:
    """The session ends."""

    code: CodeText
    message: Sentence = ""


@dataclass(frozen=True, slots=True)
class DonationTaken:
    """A donation is logged."""

    job: JobIdField


@dataclass(frozen=True, slots=True)
class AttachResponse:
    """What the coordinator sends; exactly one field is set."""

    challenge: AttachChallenge | None = None
    welcome: AttachWelcome | None = None
    assignment: AttachAssignment | None = None
    cancel: AttachCancel | None = None
    ack: Envelope | None = None
    idle_report: IdleReport | None = None
    goodbye: AttachGoodbye | None = None
    probe: Probe | None = None
    donation_taken: DonationTaken | None = None
