"""Inputs: what reaches the coordinator. They are not logged; what is decided on them is.

An input is a message whose signature and freshness the verifier checked, a piece of a stream, or a
timer. `core.step` turns it into records, effects and a reply, or refuses it. `session` names the
stream that a node's input came on; only the newest session of a node counts.
"""

from __future__ import annotations

from dataclasses import dataclass

from novamesh_proto.envelope import Verified
from novamesh_proto.evidence import VerifiedReceipt
from novamesh_proto.messages import (
    AttachHello,
    AttemptChunk,
    BanOrder,
    CancelOrder,
    ChunkCheckpoint,
    ClientReceipt,
    DescriptorsQuery,
    InferenceAttestation,
    JobDecision,
    JobFailure,
    JobProgress,
    JobQuery,
    JobsQuery,
    JobTerms,
    JoinClaim,
    MatchQuery,
    ModelsQuery,
    NodeDescriptor,
    NodeId,
    NodeLoad,
    NodesQuery,
    StreamAck,
    WatchQuery,
)


@dataclass(frozen=True, slots=True)
class JoinAsked:
    """Somebody shows an invite. Reply: None."""

    claim: Verified[JoinClaim]


@dataclass(frozen=True, slots=True)
class ModelsAsked:
    """What is served? Reply: tuple of PoolModel."""

    query: Verified[ModelsQuery]


@dataclass(frozen=True, slots=True)
class MatchAsked:
    """Who would take this job? Reply: tuple of Candidate."""

    query: Verified[MatchQuery]


@dataclass(frozen=True, slots=True)
class JobSubmitted:
    """A sealed job, its body checked against the terms by the verifier. Reply: JobView."""

    terms: Verified[JobTerms]
    wraps: tuple[tuple[NodeId, bytes], ...]  # node, id of the descriptor used
    reservations: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class WatchAsked:
    """A client follows its job: its watchers are shown where it is. Reply: None."""

    query: Verified[WatchQuery]


@dataclass(frozen=True, slots=True)
class AckReceived:
    """A client acknowledges a part of the stream. Reply: None."""

    ack: Verified[StreamAck]


@dataclass(frozen=True, slots=True)
class ReceiptHandedIn:
    """A client's countersignature. Reply: None."""

    receipt: Verified[ClientReceipt]


@dataclass(frozen=True, slots=True)
class CancelAsked:
    """Stop a job. Reply: JobView."""

    order: Verified[CancelOrder]


@dataclass(frozen=True, slots=True)
class JobAsked:
    """Where is a job? Reply: JobView."""

    query: Verified[JobQuery]


@dataclass(frozen=True, slots=True)
class JobsAsked:
    """Where are my jobs? Reply: tuple of JobView."""

    query: Verified[JobsQuery]


@dataclass(frozen=True, slots=True)
class NodesAsked:
    """The owner: who is here? Reply: tuple of NodeView."""

    query: Verified[NodesQuery]


@dataclass(frozen=True, slots=True)
class BanAsked:
    """The owner: keep somebody out, or let it in again. Reply: None."""

    order: Verified[BanOrder]


@dataclass(frozen=True, slots=True)
class NodeAttached:
    """A node proved itself on a new stream. Reply: tuple of RunningAttempt to go on with."""

    hello: Verified[AttachHello]
    descriptor: Verified[NodeDescriptor]
    session: bytes
    rtt_us: int = 0


@dataclass(frozen=True, slots=True)
class NodeDetached:
    """A stream ended, perhaps since we are `stopping`. Harmless for an old session. Reply: None."""

    node: NodeId
    session: bytes
    stopping: bool = False


@dataclass(frozen=True, slots=True)
class LoadChanged:
    """How much more a node takes. Reply: None."""

    node: NodeId
    session: bytes
    load: NodeLoad


@dataclass(frozen=True, slots=True)
class DescriptorRenewed:
    """A newer descriptor on an open stream. Reply: None."""

    node: NodeId
    session: bytes
    descriptor: Verified[NodeDescriptor]


@dataclass(frozen=True, slots=True)
class IdleAsked:
    """Why is there no work? Reply: IdleReport."""

    node: NodeId
    session: bytes


@dataclass(frozen=True, slots=True)
class AttemptDecided:
    """A node takes an attempt or declines it. Reply: None."""

    session: bytes
    decision: Verified[JobDecision]


@dataclass(frozen=True, slots=True)
class PrefillMoved:
    """Work goes on without a token yet. Reply: None."""

    node: NodeId
    session: bytes
    progress: JobProgress


@dataclass(frozen=True, slots=True)
class ChunkArrived:
    """A sealed chunk. Reply: None."""

    node: NodeId
    session: bytes
    chunk: AttemptChunk


@dataclass(frozen=True, slots=True)
class CheckpointArrived:
    """A node commits to its chain so far. Reply: None."""

    session: bytes
    checkpoint: Verified[ChunkCheckpoint]


@dataclass(frozen=True, slots=True)
class AttemptAttested:
    """A node's signed claim about an attempt. Reply: None."""

    session: bytes
    attestation: Verified[InferenceAttestation]


@dataclass(frozen=True, slots=True)
class AttemptFailed:
    """A node gives up an attempt it had taken. Reply: None."""

    session: bytes
    failure: Verified[JobFailure]


@dataclass(frozen=True, slots=True)
class WitnessArrived:
    """What a client signed for on a direct path, brought by its node. Reply: None."""

    node: NodeId
    session: bytes
    witness: Verified[StreamAck] | Verified[ClientReceipt]


@dataclass(frozen=True, slots=True)
class WorkOffered:
    """Work that a node did while we were away, its evidence checked. Reply: None."""

    node: NodeId
    session: bytes
    proof: VerifiedReceipt


@dataclass(frozen=True, slots=True)
class ProbeWanted:
    """Somebody hints that a node is gone: ask it. Reply: None."""

    node: NodeId


@dataclass(frozen=True, slots=True)
class EchoArrived:
    """A node answers a probe. Reply: None."""

    node: NodeId
    session: bytes
    nonce: bytes


@dataclass(frozen=True, slots=True)
class DescriptorsAsked:
    """May I keep the descriptors of who is here? Reply: None; they are in the table."""

    query: Verified[DescriptorsQuery]


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time passed: leases, deadlines, reservations and tails may have run out. Reply: None."""


Input = (
    JoinAsked
    | ModelsAsked
    | MatchAsked
    | JobSubmitted
    | WatchAsked
    | AckReceived
    | ReceiptHandedIn
    | CancelAsked
    | JobAsked
    | JobsAsked
    | NodesAsked
    | BanAsked
    | NodeAttached
    | NodeDetached
    | LoadChanged
    | DescriptorRenewed
    | IdleAsked
    | AttemptDecided
    | PrefillMoved
    | ChunkArrived
    | CheckpointArrived
    | AttemptAttested
    | AttemptFailed
    | WitnessArrived
    | WorkOffered
    | ProbeWanted
    | EchoArrived
    | DescriptorsAsked
    | Ticked
)
