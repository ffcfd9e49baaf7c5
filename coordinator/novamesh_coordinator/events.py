"""Records: the decisions of a pool, which are logged, and the moment they are made at.

A record is written to the log before anything that rests on it leaves. Replaying the records gives
the same state, so a record holds all that its decision needs: times, identities, signed envelopes;
nothing is computed again from a clock or a random number. What reaches us, in `inputs`, is not
logged. This module only names things.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from novamesh_proto.messages import (
    Envelope,
    JobId,
    JobState,
    MessageId,
    NodeId,
    ProfileDigest,
)


@dataclass(frozen=True, slots=True)
class Moment:
    """Now: wall clock for what is signed and logged, ticks (monotonic) for what runs out."""

    wall_ms: int
    ticks_us: int

    @property
    def ticks_ms(self) -> int:
        """Ticks in milliseconds."""
        return self.ticks_us // 1000


@dataclass(frozen=True, slots=True)
class MemberJoined:
    """Somebody is a member from now on; `invite` is the id of the invite it used, or empty."""

    member: NodeId
    at_ms: int
    invite: bytes
    invite_expires_ms: int
    claim: MessageId
    claim_expires_ms: int


@dataclass(frozen=True, slots=True)
class MemberBanned:
    """The owner keeps a member out; an empty reason lets it in again."""

    member: NodeId
    at_ms: int
    reason: str
    order: MessageId
    order_expires_ms: int


@dataclass(frozen=True, slots=True)
class DescriptorTaken:
    """A node advertised itself with a higher sequence than before."""

    node: NodeId
    at_ms: int
    sequence: int
    descriptor: Envelope


@dataclass(frozen=True, slots=True)
class JobAdmitted:
    """A job is ours to bring to an end; `candidates` are the nodes whose wraps it carries."""

    job: JobId
    at_ms: int
    client: NodeId
    key: str
    model_profile: ProfileDigest
    timeout_ms: int
    max_tokens: int
    body_bytes: int
    start_position: int
    root: JobId
    candidates: tuple[NodeId, ...]
    terms: Envelope


@dataclass(frozen=True, slots=True)
class JobAssigned:
    """An attempt begins: one node, one fence."""

    job: JobId
    at_ms: int
    attempt: int
    fence: int
    node: NodeId
    assignment: Envelope


@dataclass(frozen=True, slots=True)
class AttemptAccepted:
    """The node took the attempt."""

    job: JobId
    at_ms: int
    attempt: int
    fence: int
    decision: Envelope


@dataclass(frozen=True, slots=True)
class AttemptEnded:
    """An attempt is over without a result; `lost` counts against the node's record."""

    job: JobId
    at_ms: int
    attempt: int
    fence: int
    node: NodeId
    code: str
    message: str
    lost: bool
    evidence: Envelope | None = None


@dataclass(frozen=True, slots=True)
class JobEnded:
    """A job ended otherwise than SETTLED, with `tokens` relayed; a cancel names its order."""

    job: JobId
    at_ms: int
    state: JobState
    code: str
    message: str
    tokens: int = 0
    order: bytes = b""
    order_expires_ms: int = 0


@dataclass(frozen=True, slots=True)
class AttemptSettled:
    """The one settlement of a job part, with the evidence it rests on.

    `outcome` SETTLED ends the job; any other outcome is a part of a job that ended so already.
    `milli_tokens_per_s` is the witnessed speed that ranking uses, 0 where it cannot be told.
    """

    job: JobId
    at_ms: int
    attempt: int
    fence: int
    node: NodeId
    outcome: JobState
    start_position: int
    prompt_tokens: int
    completion_tokens: int
    milli_tokens_per_s: int
    claim: Envelope
    relay_receipt: Envelope | None  # None where the client took the answer from the node itself
    settlement: Envelope
    witness: Envelope | None = None  # what the client signed for in that case


@dataclass(frozen=True, slots=True)
class EvidenceKept:
    """Something signed that changes nothing: a late result, a client's receipt."""

    job: JobId
    at_ms: int
    issuer: NodeId
    kind: str
    envelope: Envelope


@dataclass(frozen=True, slots=True)
class WorkDonated:
    """A node did work for a client while we were away. Nothing is paid, everything is kept."""

    job: JobId
    at_ms: int
    node: NodeId
    client: NodeId
    model_profile: ProfileDigest
    prompt_tokens: int
    completion_tokens: int
    expires_at_ms: int  # of its terms: afterwards nobody could have done it
    donation: tuple[Envelope, Envelope, Envelope, Envelope]


@dataclass(frozen=True, slots=True)
class JobsForgotten:
    """Jobs that ended before a moment leave the state; the log keeps them."""

    at_ms: int
    before_ms: int


Record = (
    MemberJoined
    | MemberBanned
    | DescriptorTaken
    | JobAdmitted
    | JobAssigned
    | AttemptAccepted
    | AttemptEnded
    | JobEnded
    | AttemptSettled
    | EvidenceKept
    | WorkDonated
    | JobsForgotten
)
RECORDS: Final[dict[str, type[Record]]] = {
    cls.__name__: cls
    for cls in (
        MemberJoined,
        MemberBanned,
        DescriptorTaken,
        JobAdmitted,
        JobAssigned,
        AttemptAccepted,
        AttemptEnded,
        JobEnded,
        AttemptSettled,
        EvidenceKept,
        WorkDonated,
        JobsForgotten,
    )
}
