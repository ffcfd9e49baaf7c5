"""Effects: what the core wants done, and the turn in which one input is handled.

The shell carries out effects in order, and none before the records decided until then are
committed; what watchers may see is in the effect itself. A turn gathers both; a handler refuses
(raises) before it logs anything, so a refused input leaves no trace in the logged state.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from novamesh_coordinator.events import Moment, Record
from novamesh_proto.errors import Code
from novamesh_proto.messages import Envelope, JobId, JobView, NodeId, WatchResponse


@dataclass(frozen=True, slots=True)
class Assign:
    """Send the job, with this node's wrap only, and its signed assignment down a session."""

    node: NodeId
    session: bytes
    job: JobId
    assignment: Envelope
    attempt: int
    body_bytes: int


@dataclass(frozen=True, slots=True)
class StopAttempt:
    """Tell a node to stop an attempt, and why."""

    node: NodeId
    session: bytes
    job: JobId
    attempt: int
    fence: int
    code: Code


@dataclass(frozen=True, slots=True)
class PassAck:
    """Pass a client's acknowledgement to the node at work."""

    node: NodeId
    session: bytes
    ack: Envelope


@dataclass(frozen=True, slots=True)
class AskEcho:
    """Ask a node whether it is there."""

    node: NodeId
    session: bytes
    nonce: bytes


@dataclass(frozen=True, slots=True)
class TakeDonation:
    """Tell a node that its donated work is logged."""

    node: NodeId
    session: bytes
    job: JobId


@dataclass(frozen=True, slots=True)
class EndSession:
    """Close a node's stream after a goodbye."""

    node: NodeId
    session: bytes
    code: Code
    message: str


@dataclass(frozen=True, slots=True)
class Publish:
    """Watchers see this job so from now on; `tail` follows the chunks of a job that ended."""

    view: JobView
    tail: tuple[WatchResponse, ...] = ()


@dataclass(frozen=True, slots=True)
class Wake:
    """A stream has more items for its watchers."""

    job: JobId


Effect = Assign | StopAttempt | PassAck | AskEcho | TakeDonation | EndSession | Publish | Wake
# These rest on nothing that may still have to be committed.
UNORDERED: Final = (PassAck, AskEcho, Wake)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one input led to: records to commit, then effects to carry out, then the reply."""

    records: tuple[Record, ...]
    effects: tuple[Effect, ...]
    reply: object


@dataclass(slots=True)
class Turn:
    """One input being handled; the only way to log and to emit."""

    now: Moment
    rng: random.Random
    apply: Callable[[Record], None]
    records: list[Record] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)

    def log(self, record: Record) -> None:
        """Decide: the state changes at once, the record is committed before any effect."""
        self.apply(record)
        self.records.append(record)

    def emit(self, effect: Effect) -> None:
        """Want something done once the records are committed."""
        self.effects.append(effect)

    def nonce(self) -> bytes:
        """16 bytes for a header or a name."""
        return self.rng.randbytes(16)
