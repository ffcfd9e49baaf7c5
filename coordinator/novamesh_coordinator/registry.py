"""Nodes: what each one advertises, whether it is here, and which of them could take a job.

Adverts (signed descriptors, the newest sequence wins) are logged when they say something new;
that they are renewed every minute is presence, which is not. Whether a node has a free slot is
worked out from three sources, the smallest counts: what it said last less what it was given since,
its slots less the attempts it has, and what others have reserved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from novamesh_coordinator.donations import Donated
from novamesh_coordinator.effects import AskEcho, EndSession, Turn
from novamesh_coordinator.events import DescriptorTaken, Moment
from novamesh_coordinator.ledger import Ledger
from novamesh_coordinator.reservations import Reservations
from novamesh_coordinator.sessions import Session, Sessions
from novamesh_coordinator.timers import Timers
from novamesh_proto import wire
from novamesh_proto.envelope import Verified, message_id
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.limits import (
    CLOCK_SKEW_MS,
    POOL_MODELS_MAX,
    POOL_NODES_MAX,
)
from novamesh_proto.matching import NodeState, Ranking, Request, rank, unservable
from novamesh_proto.messages import (
    Candidate,
    Envelope,
    MatchQuery,
    MessageId,
    NodeDescriptor,
    NodeId,
    NodeView,
    PoolModel,
    ProfileDigest,
)

PROBE_MS: Final = 10_000

Active = Callable[[NodeId], int]


@dataclass(frozen=True, slots=True)
class Advert:
    """What a node advertised last."""

    node: NodeId
    at_ms: int
    sequence: int
    descriptor: Envelope


@dataclass(frozen=True, slots=True)
class RegistryState:
    """Adverts, sorted by node."""

    adverts: tuple[Advert, ...] = ()


class Registry:
    """Adverts and presence. `active(node)` tells how many attempts a node has at work."""

    def __init__(self, ledger: Ledger, active: Active, state: RegistryState) -> None:
        self._ledger = ledger
        self._active = active
        self._adverts: dict[NodeId, Advert] = {}
        self._descriptors: dict[NodeId, NodeDescriptor] = {}  # decoded once, from the adverts
        self.sessions = Sessions()
        self.reservations = Reservations()
        self._probes: Timers[tuple[int, bytes]] = Timers()
        for advert in state.adverts:
            self._take(advert)

    def dump(self) -> RegistryState:
        """The logged state, sorted."""
        return RegistryState(tuple(self._adverts[node] for node in sorted(self._adverts)))

    def apply(self, record: DescriptorTaken) -> None:
        """Take an advert; the one not renewed for longest makes room for it."""
        self._take(Advert(record.node, record.at_ms, record.sequence, record.descriptor))
        if len(self._adverts) > POOL_NODES_MAX:
            oldest = min(self._adverts.values(), key=lambda advert: (advert.at_ms, advert.node))
            del self._adverts[oldest.node]
            del self._descriptors[oldest.node]

    def descriptor(self, node: NodeId) -> NodeDescriptor | None:
        """What a node advertised last, as far as anybody knows."""
        session = self.sessions.get(node)
        return self._descriptors.get(node) if session is None else session.descriptor.message

    def renew(self, turn: Turn, session: Session, descriptor: Verified[NodeDescriptor]) -> None:
        """An attached node advertises itself anew. Raises STALE as `take_descriptor`."""
        self.take_descriptor(turn, descriptor)
        session.descriptor = descriptor

    def take_descriptor(self, turn: Turn, descriptor: Verified[NodeDescriptor]) -> None:
        """Log a descriptor if it is newer than the one we have, and says something else.

        Raises:
            NovaMeshError: STALE for an older sequence, or for another descriptor with the same.
        """
        node, sequence = descriptor.issuer, descriptor.message.sequence
        known_sequence, known_id = self._newest(node)
        if sequence < known_sequence:
            raise NovaMeshError(
                Code.STALE,
                f"descriptor {sequence} is older than descriptor {known_sequence} of this node",
                "sign a descriptor with a higher sequence; is a copy of this node running?",
            )
        if sequence == known_sequence and known_id != descriptor.id:
            raise NovaMeshError(
                Code.STALE,
                f"two different descriptors of this node have sequence {sequence}",
                "sign a descriptor with a higher sequence",
            )
        logged = self._descriptors.get(node)
        if logged is None or _substance(logged) != _substance(descriptor.message):
            turn.log(DescriptorTaken(node, turn.now.wall_ms, sequence, descriptor.envelope))

    def attach(
        self, turn: Turn, descriptor: Verified[NodeDescriptor], session: bytes, rtt_us: int
    ) -> None:
        """A node is here; an older stream of it is sent away."""
        self.take_descriptor(turn, descriptor)
        node, sessions = descriptor.issuer, self.sessions
        self.dismiss(turn, node, Code.STALE, "a newer stream of this node took its place")
        slots = descriptor.message.slots
        free = max(0, slots - self._active(node))
        sessions.open(descriptor, session, free, rtt_us, turn.now)

    def dismiss(self, turn: Turn, node: NodeId, code: Code, message: str) -> None:
        """End the stream of a node, if it has one."""
        old = self.sessions.get(node)
        if old is not None:
            self.sessions.close(node, old.session)
            turn.emit(EndSession(node, old.session, code, message))

    def probe(self, turn: Turn, node: NodeId) -> None:
        """Ask an attached node whether it is there, unless it is being asked."""
        session = self.sessions.get(node)
        if session is None or session.probe:
            return
        session.probe = turn.nonce()
        self._probes.set((0, node), turn.now.ticks_ms + PROBE_MS)
        turn.emit(AskEcho(node, session.session, session.probe))

    def answered(self, session: Session, nonce: bytes) -> None:
        """A node sent a nonce back."""
        if nonce == session.probe:
            session.probe = b""
            self._probes.drop((0, session.node))

    def silent(self, turn: Turn) -> list[NodeId]:
        """Nodes whose time to answer a probe is over; their streams are ended."""
        gone = []
        for _, raw in self._probes.take_due(turn.now.ticks_ms):
            node = NodeId(raw)
            session = self.sessions.get(node)
            if session is not None and session.probe:
                self.dismiss(turn, node, Code.UNAVAILABLE, "you did not answer; attach again")
                gone.append(node)
        return gone

    def next_ms(self) -> int | None:
        """Ticks before which no probe runs out."""
        return self._probes.next_ms()

    def match(self, turn: Turn, client: NodeId, query: MatchQuery) -> tuple[Candidate, ...]:
        """Candidates for a job, with a slot held at as many of them as is this client's share.

        Raises:
            NovaMeshError: MODEL_NOT_FOUND, NO_CAPACITY, or BUSY with a retry time.
        """
        request = Request(query.model_profile, query.prompt_bytes, query.max_tokens, query.excluded)
        states = self._states(turn.now, query.model_profile, self.sessions.all())
        ranking = rank(request, states, turn.rng, query.count)
        self.sessions.account(ranking)
        refusal = unservable(ranking, f"model {query.model_profile.hex()[:12]}")
        if refusal is not None:
            raise refusal
        free = {
            state.node: state.free_slots
            for state in states
            if state.accepting and state.offer(query.model_profile) is not None
        }
        slots = [(turn.nonce(), ranked.node) for ranked in ranking.chosen]
        room = self.reservations.room(client, free, turn.now)
        self.reservations.hold(client, slots[:room], turn.now)
        sealed = {one.node: one.descriptor.envelope for one in self.sessions.all()}
        return tuple(
            Candidate(sealed[ranked.node], ranked.reason[:500], reservation)
            for ranked, (reservation, _) in zip(ranking.chosen, slots, strict=True)
        )

    def rank_among(
        self,
        turn: Turn,
        request: Request,
        nodes: Iterable[NodeId],
        own: Mapping[NodeId, int] | None = None,
    ) -> Ranking:
        """Rank some nodes; `own` reservations of the client do not stand in its way."""
        sessions = [session for node in nodes if (session := self.sessions.get(node))]
        states = self._states(turn.now, request.model_profile, sessions, own)
        return rank(request, states, turn.rng, max(1, len(states)))

    def models(self, now: Moment) -> tuple[PoolModel, ...]:
        """What attached nodes serve, by name, at most POOL_MODELS_MAX."""
        found: dict[ProfileDigest, PoolModel] = {}
        for session in self.sessions.all():
            free = self._free(session) if session.accepting else 0
            for offer in session.descriptor.message.models:
                known = found.get(offer.model_profile)
                found[offer.model_profile] = PoolModel(
                    model_profile=offer.model_profile,
                    name=known.name if known else offer.name,
                    nodes=(known.nodes if known else 0) + 1,
                    free_slots=(known.free_slots if known else 0) + free,
                    context_max=max(known.context_max if known else 0, offer.context_max),
                )
        listed = sorted(found.values(), key=lambda model: (model.name, model.model_profile))
        return tuple(listed[:POOL_MODELS_MAX])

    def views(
        self, ban_reason: Callable[[NodeId], str], donated: Callable[[NodeId], Donated]
    ) -> tuple[NodeView, ...]:
        """Every node that ever advertised itself, attached ones first."""
        known = sorted(self._adverts)
        views = [self._view(node, ban_reason(node), donated(node)) for node in known]
        return tuple(sorted(views, key=lambda view: not view.attached))

    def counts(self) -> tuple[int, int]:
        """Slots and free slots of all attached nodes."""
        slots = free = 0
        for session in self.sessions.all():
            slots += session.descriptor.message.slots
            free += self._free(session) if session.accepting else 0
        return slots, free

    def _take(self, advert: Advert) -> None:
        self._adverts[advert.node] = advert
        self._descriptors[advert.node] = wire.decode(NodeDescriptor, advert.descriptor.payload)

    def _newest(self, node: NodeId) -> tuple[int, MessageId | None]:
        """Sequence and id of the newest descriptor that we know of."""
        session, advert = self.sessions.get(node), self._adverts.get(node)
        if session is not None:
            return session.descriptor.message.sequence, session.descriptor.id
        return (advert.sequence, message_id(advert.descriptor)) if advert else (0, None)

    def _free(self, session: Session) -> int:
        slots = session.descriptor.message.slots
        return max(0, min(session.free, slots - self._active(session.node)))

    def _states(
        self,
        now: Moment,
        profile: ProfileDigest,
        sessions: Iterable[Session],
        own: Mapping[NodeId, int] | None = None,
    ) -> list[NodeState]:
        states, own = [], own or {}
        for session in sessions:
            descriptor = session.descriptor.message
            expired = descriptor.header.expires_at_ms + CLOCK_SKEW_MS < now.wall_ms
            standing = self._ledger.standing(session.node)
            held, held_ms = self.reservations.at(session.node, now)
            states.append(
                NodeState(
                    descriptor=descriptor,
                    node=session.node,
                    free_slots=self._free(session),
                    reserved=held - own.get(session.node, 0),
                    reserved_ms=held_ms,
                    accepting=session.accepting and not expired,
                    refusal="its descriptor has expired" if expired else session.refusal,
                    witnessed_tokens_per_s=standing.speed(profile),
                    jobs_settled=standing.jobs_settled,
                    jobs_lost=standing.jobs_lost,
                )
            )
        return states

    def _view(self, node: NodeId, ban_reason: str, donated: Donated) -> NodeView:
        session, standing = self.sessions.get(node), self._ledger.standing(node)
        advert, descriptor = self._adverts[node], self.descriptor(node) or self._descriptors[node]
        note = f"banned: {ban_reason}" if ban_reason else ""
        free = 0
        if session is not None and session.accepting:
            free = self._free(session)
        elif session is not None:
            note = note or session.refusal or "takes no work"
        return NodeView(
            node=node,
            attached=session is not None,
            models=tuple(offer.name for offer in descriptor.models),
            hardware=descriptor.hardware.name,
            slots=descriptor.slots,
            free_slots=free,
            jobs_settled=standing.jobs_settled,
            tokens_settled=standing.tokens_settled,
            witnessed_tokens_per_s=standing.overall_speed(),
            seen_at_ms=session.seen_ms if session else advert.at_ms,
            note=note[:500],
            jobs_donated=donated.jobs,
            tokens_donated=donated.completion_tokens,
        )


def _substance(said: NodeDescriptor) -> NodeDescriptor:
    """What of a descriptor is not renewed with every one."""
    fixed = replace(said.header, nonce=bytes(16), issued_at_ms=0, expires_at_ms=0)
    return replace(said, header=fixed, sequence=1, hpke_key=bytes(32), free_slots=0)
