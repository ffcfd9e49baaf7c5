"""Where effects go: outboxes of attached nodes, mailboxes of watchers.

Rules: an outbox holds OUTBOX_MAX messages, and a node that does not keep up loses its session, not
the coordinator's memory; a job that takes long to send waits for all that is small; a watcher is
shown the newest state, never a queue of old ones. Nothing is decided here.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import Final

from novamesh_coordinator.effects import (
    AskEcho,
    Assign,
    Effect,
    EndSession,
    PassAck,
    Publish,
    StopAttempt,
    TakeDonation,
    Wake,
)
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.limits import KIB
from novamesh_proto.messages import (
    AttachCancel,
    AttachGoodbye,
    AttachResponse,
    DonationTaken,
    JobId,
    NodeId,
    Probe,
)

OUTBOX_MAX: Final = 64
WATCHERS_MAX: Final = 8  # of one job
LARGE_BYTES: Final = 64 * KIB  # a body above this takes half a second on a slow home line

Outgoing = AttachResponse | Assign


class Outbox:
    """Messages for one session of a node; `closed` says why it ended.

    In order, but that large jobs come after whatever else waits: an acknowledgement, a cancel, a
    small job need not wait until several of them are sent.
    """

    def __init__(self, node: NodeId, session: bytes) -> None:
        self.node = node
        self.session = session
        self.closed: AttachGoodbye | None = None
        self._waiting: deque[Outgoing] = deque()
        self._large: deque[Assign] = deque()
        self._changed = asyncio.Event()

    def put(self, message: Outgoing) -> None:
        """Queue a message; a full outbox ends the session."""
        if self.closed is not None:
            return
        if len(self._waiting) + len(self._large) >= OUTBOX_MAX:
            self.close(Code.BUSY, "the node does not read its messages")
            return
        if isinstance(message, Assign):
            large = message.body_bytes > LARGE_BYTES
            (self._large if large else self._waiting).append(message)
        else:
            if message.cancel is not None:
                self._recall(message.cancel)
            self._waiting.append(message)
        self._changed.set()

    def _recall(self, cancel: AttachCancel) -> None:
        """A cancel that overtakes its large job takes it out."""
        gone = (cancel.job, cancel.attempt)
        self._large = deque(one for one in self._large if (one.job, one.attempt) != gone)

    def close(self, code: Code, message: str) -> None:
        """Nothing more is queued; what waits is still sent, then the goodbye."""
        if self.closed is None:
            self.closed = AttachGoodbye(code, message[:500])
            self._changed.set()

    async def next(self) -> Outgoing | None:
        """The next message; None when the session is to end."""
        while not self._waiting and not self._large:
            if self.closed is not None:
                return None
            self._changed.clear()
            await self._changed.wait()
        return self._waiting.popleft() if self._waiting else self._large.popleft()


@dataclass(slots=True)
class Watcher:
    """Somebody who follows a job: what it sees now, and a bell."""

    job: JobId
    seen: Publish | None = None
    bell: asyncio.Event = field(default_factory=asyncio.Event)


class Hub:
    """The only owner of outboxes and watchers."""

    def __init__(self) -> None:
        self._outboxes: dict[tuple[NodeId, bytes], Outbox] = {}
        self._watchers: dict[JobId, list[Watcher]] = {}
        self.stopping = False  # sessions that end now end because of us

    def connect(self, node: NodeId, session: bytes) -> Outbox:
        """The outbox of a new session; an older one is closed when the core says so."""
        outbox = Outbox(node, session)
        self._outboxes[node, session] = outbox
        return outbox

    def disconnect(self, outbox: Outbox) -> None:
        """A stream is gone."""
        self._outboxes.pop((outbox.node, outbox.session), None)

    def watch(self, job: JobId) -> Watcher:
        """Follow a job.

        Raises:
            NovaMeshError: BUSY if too many do already.
        """
        watchers = self._watchers.setdefault(job, [])
        if len(watchers) >= WATCHERS_MAX:
            raise NovaMeshError(
                Code.BUSY, f"{WATCHERS_MAX} streams follow this job already", "close one", 1_000
            )
        watcher = Watcher(job)
        watchers.append(watcher)
        return watcher

    def unwatch(self, watcher: Watcher) -> None:
        """Follow no more."""
        watchers = self._watchers[watcher.job]
        watchers.remove(watcher)
        if not watchers:
            del self._watchers[watcher.job]

    def say_goodbye(self, code: Code, message: str) -> None:
        """End every session: the coordinator stops."""
        self.stopping = True
        for outbox in self._outboxes.values():
            outbox.close(code, message)

    def deliver(self, effect: Effect) -> None:
        """Carry out one effect."""
        match effect:
            case Publish():
                for watcher in self._watchers.get(effect.view.job, ()):
                    watcher.seen = effect
                    watcher.bell.set()
            case Wake():
                for watcher in self._watchers.get(effect.job, ()):
                    watcher.bell.set()
            case EndSession():
                outbox = self._outboxes.get((effect.node, effect.session))
                if outbox is not None:
                    outbox.close(effect.code, effect.message)
            case Assign() | StopAttempt() | PassAck() | AskEcho() | TakeDonation():
                outbox = self._outboxes.get((effect.node, effect.session))
                if outbox is not None:
                    outbox.put(_outgoing(effect))


def _outgoing(effect: Assign | StopAttempt | PassAck | AskEcho | TakeDonation) -> Outgoing:
    match effect:
        case Assign():
            return effect  # the session's writer adds the sealed job
        case StopAttempt():
            return AttachResponse(
                cancel=AttachCancel(effect.job, effect.attempt, effect.fence, effect.code)
            )
        case PassAck():
            return AttachResponse(ack=effect.ack)
        case AskEcho():
            return AttachResponse(probe=Probe(effect.nonce))
        case TakeDonation():
            return AttachResponse(donation_taken=DonationTaken(effect.job))
