"""Who is attached now: the newest stream of each node, its load, and why it got no work.

Presence is not logged: after a restart nobody is attached until it dials again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from novamesh_coordinator.events import Moment
from novamesh_proto.envelope import Verified
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.matching import Cause, Ranking
from novamesh_proto.messages import (
    IdleReason,
    IdleReport,
    JobId,
    NodeDescriptor,
    NodeId,
    NodeLoad,
)

STOPS_KEPT: Final = 256  # attempts a session remembers having been told to stop


@dataclass(slots=True)
class Session:
    """One node's open stream. `free` is what it said last, less what it was given since."""

    node: NodeId
    session: bytes
    descriptor: Verified[NodeDescriptor]  # the newest; of these only what differs is logged
    attached_ms: int
    seen_ms: int
    rtt_us: int
    free: int
    accepting: bool = True
    refusal: str = ""
    probe: bytes = b""  # the nonce that it has still to send back
    considered: int = 0
    chosen: int = 0
    causes: dict[Cause, tuple[int, str]] = field(default_factory=dict)
    _stopped: dict[tuple[JobId, int], None] = field(default_factory=dict)

    def stop_once(self, job: JobId, attempt: int) -> bool:
        """Whether the node still has to be told to stop this attempt; True once."""
        if (job, attempt) in self._stopped:
            return False
        if len(self._stopped) >= STOPS_KEPT:
            del self._stopped[next(iter(self._stopped))]
        self._stopped[job, attempt] = None
        return True

    def report(self) -> IdleReport:
        """Why it got no work since it attached, most frequent reason first."""
        counted = sorted(self.causes.items(), key=lambda item: (-item[1][0], item[0]))
        reasons = tuple(IdleReason(reason, count) for _, (count, reason) in counted)
        return IdleReport(self.considered, self.chosen, reasons)


class Sessions:
    """Open streams by node."""

    def __init__(self) -> None:
        self._sessions: dict[NodeId, Session] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def all(self) -> list[Session]:
        """Every open session."""
        return list(self._sessions.values())

    def get(self, node: NodeId) -> Session | None:
        """The newest session of a node."""
        return self._sessions.get(node)

    def require(self, node: NodeId, session: bytes, now: Moment) -> Session:
        """The session, if it is the newest of the node.

        Raises:
            NovaMeshError: STALE.
        """
        found = self._sessions.get(node)
        if found is None or found.session != session:
            raise NovaMeshError(
                Code.STALE, "this session has ended, a newer one took its place", "attach again"
            )
        found.seen_ms = now.wall_ms
        return found

    def open(
        self,
        descriptor: Verified[NodeDescriptor],
        session: bytes,
        slots: int,
        rtt_us: int,
        now: Moment,
    ) -> None:
        """A node attached; its older session counts no more."""
        node, at_ms = descriptor.issuer, now.wall_ms
        self._sessions[node] = Session(node, session, descriptor, at_ms, at_ms, rtt_us, slots)

    def close(self, node: NodeId, session: bytes) -> bool:
        """A stream ended; False if it was not the newest."""
        found = self._sessions.get(node)
        if found is None or found.session != session:
            return False
        del self._sessions[node]
        return True

    def set_load(self, session: Session, load: NodeLoad) -> None:
        """What the node says it would take now."""
        session.free = load.free_slots
        session.accepting = load.accepting
        session.refusal = load.reason

    def give_back(self, node: NodeId) -> None:
        """An attempt ended, so a slot is free again unless the node's next load says otherwise."""
        session = self._sessions.get(node)
        if session is not None:
            session.free += 1

    def fill(self, node: NodeId) -> None:
        """The node has no slot left, whatever we thought; its next load says more."""
        session = self._sessions.get(node)
        if session is not None:
            session.free = 0

    def account(self, ranking: Ranking) -> None:
        """Remember who was chosen and who was not, so that a node can ask why."""
        for ranked in ranking.chosen:
            session = self._sessions.get(ranked.node)
            if session is not None:
                session.considered += 1
                session.chosen += 1
        for refused in ranking.refused:
            session = self._sessions.get(refused.node)
            if session is not None:
                session.considered += 1
                count, _ = session.causes.get(refused.cause, (0, ""))
                session.causes[refused.cause] = (count + 1, refused.reason[:500])
