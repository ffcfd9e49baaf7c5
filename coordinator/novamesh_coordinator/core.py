"""The coordinator as a function: step(input, now, rng) → records, effects, reply.

Deterministic: no clock, no randomness, no I/O of its own; the same state, input, moment and rng
give the same outcome. State is what the records say, and replaying them gives it again, byte for
byte; presence, reservations, leases and chunks are beside it and are rebuilt as members come back.
An input is refused by raising NovaMeshError, and then nothing was logged.

The shell commits the records of a step before it carries out the effects and gives the reply.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from novamesh_coordinator import inputs
from novamesh_coordinator.clearing import Clearing
from novamesh_coordinator.desk import Desk
from novamesh_coordinator.dispatcher import Dispatcher
from novamesh_coordinator.donations import Donations, DonationsState
from novamesh_coordinator.effects import Outcome, Turn
from novamesh_coordinator.events import (
    AttemptEnded,
    AttemptSettled,
    DescriptorTaken,
    JobsForgotten,
    MemberBanned,
    MemberJoined,
    Moment,
    Record,
    WorkDonated,
)
from novamesh_coordinator.floor import Floor
from novamesh_coordinator.inputs import BanAsked, Input, JoinAsked, MatchAsked, ModelsAsked, Ticked
from novamesh_coordinator.invite import invite_secret
from novamesh_coordinator.jobs import Jobs, JobsState
from novamesh_coordinator.ledger import Ledger, LedgerState
from novamesh_coordinator.membership import Membership, MembershipState
from novamesh_coordinator.registry import Registry, RegistryState
from novamesh_coordinator.relay import Relay
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.identity import PrivateKey
from novamesh_proto.messages import Candidate, PoolModel

JOBS_KEPT_MS: Final = 30 * 60_000  # an ended job; above the life of any terms, see _forget
FORGET_EVERY_MS: Final = 60_000


@dataclass(frozen=True, slots=True)
class CoreState:
    """All that the records decided."""

    membership: MembershipState = field(default=MembershipState())
    registry: RegistryState = field(default=RegistryState())
    ledger: LedgerState = field(default=LedgerState())
    jobs: JobsState = field(default=JobsState())
    donations: DonationsState = field(default=DonationsState())


@dataclass(frozen=True, slots=True)
class PoolIdentity:
    """Whose coordinator this is."""

    key: PrivateKey
    network: str
    open: bool = False


class Core:
    """The parts, wired; each is the one owner of its state."""

    def __init__(
        self, identity: PoolIdentity, state: CoreState | None = None, relay: Relay | None = None
    ) -> None:
        state = CoreState() if state is None else state
        self.identity = identity
        self.membership = Membership(invite_secret(identity.key), identity.open, state.membership)
        self.ledger = Ledger(state.ledger)
        self.jobs = Jobs(state.jobs)
        self.registry = Registry(self.ledger, self.jobs.active, state.registry)
        self.relay = Relay() if relay is None else relay
        self.dispatcher = Dispatcher(
            Clearing(identity.key, identity.network),
            self.jobs,
            self.registry,
            self.ledger,
            self.relay,
        )
        self.donations = Donations(state.donations)
        parts = (self.membership, self.registry, self.jobs, self.relay, self.dispatcher)
        self.desk = Desk(*parts)
        self.floor = Floor(*parts, self.donations)
        self._handlers = self._wire()

    def step(self, event: Input, now: Moment, rng: random.Random) -> Outcome:
        """Handle one input.

        Raises:
            NovaMeshError: the input is refused; nothing was logged.
        """
        turn = Turn(now, rng, self.apply)
        try:
            reply = self._handlers[type(event)](turn, event)
        except NovaMeshError:
            assert not turn.records
            raise
        return Outcome(tuple(turn.records), tuple(turn.effects), reply)

    def next_ms(self) -> int | None:
        """Ticks before which a Ticked would find nothing to end; None if there is nothing."""
        due = (self.dispatcher.next_ms(), self.registry.next_ms())
        return min((ms for ms in due if ms is not None), default=None)

    def apply(self, record: Record) -> None:
        """Change the state as a record says: when it is decided, and again in a replay."""
        match record:
            case MemberJoined() | MemberBanned():
                self.membership.apply(record)
            case DescriptorTaken():
                self.registry.apply(record)
            case WorkDonated():
                self.donations.apply(record)
            case JobsForgotten():
                for root in self.jobs.forget(record):
                    self.ledger.forget(root)
            case AttemptSettled():
                job = self.jobs.apply(record)
                self.ledger.settle(record, job.root, job.model_profile)
            case AttemptEnded():
                self.jobs.apply(record)
                if record.lost:
                    self.ledger.lose(record)
            case _:
                self.jobs.apply(record)

    def replay(self, records: Iterable[Record]) -> None:
        """Apply what was decided before."""
        for record in records:
            self.apply(record)

    def state(self) -> CoreState:
        """The logged state as one value."""
        return CoreState(
            self.membership.dump(),
            self.registry.dump(),
            self.ledger.dump(),
            self.jobs.dump(),
            self.donations.dump(),
        )

    def recover(self, now: Moment) -> None:
        """After a restart: every live attempt gets a new lease, so that its node can come back."""
        for job in self.jobs.live():
            self.dispatcher.recover(job, now, self.identity.network)

    def adopt(self, older: Core, now: Moment) -> None:
        """Take over what is beside the state, from a core whose last records were not committed.

        The older core must have been built with the same relay, and is not used any more.
        """
        self.registry.sessions = older.registry.sessions
        self.registry.reservations = older.registry.reservations
        self.dispatcher.adopt(older.dispatcher, now, self.identity.network)

    def _wire(self) -> dict[type[Any], Callable[[Turn, Any], object]]:
        desk, floor = self.desk, self.floor
        return {
            JoinAsked: lambda turn, event: self.membership.join(turn, event.claim),
            ModelsAsked: self._models,
            MatchAsked: self._match,
            BanAsked: self._ban,
            inputs.NodesAsked: lambda turn, event: self.registry.views(
                self.membership.ban_reason, self.donations.of
            ),
            inputs.JobSubmitted: desk.submit,
            inputs.WatchAsked: desk.watch,
            inputs.AckReceived: desk.acknowledge,
            inputs.ReceiptHandedIn: desk.take_receipt,
            inputs.CancelAsked: desk.cancel,
            inputs.JobAsked: desk.ask,
            inputs.JobsAsked: desk.list,
            inputs.NodeAttached: floor.attach,
            inputs.NodeDetached: floor.detach,
            inputs.LoadChanged: floor.set_load,
            inputs.DescriptorRenewed: floor.renew_descriptor,
            inputs.IdleAsked: floor.report_idle,
            inputs.AttemptDecided: floor.decide,
            inputs.PrefillMoved: floor.progress,
            inputs.ChunkArrived: floor.relay_chunk,
            inputs.CheckpointArrived: floor.relay_checkpoint,
            inputs.AttemptAttested: floor.attest,
            inputs.AttemptFailed: floor.fail,
            inputs.WitnessArrived: floor.take_witness,
            inputs.WorkOffered: floor.take_donation,
            inputs.ProbeWanted: floor.probe,
            inputs.EchoArrived: floor.echo,
            inputs.DescriptorsAsked: lambda turn, event: self.membership.require(
                event.query.issuer
            ),
            Ticked: self._tick,
        }

    def _models(self, turn: Turn, event: ModelsAsked) -> tuple[PoolModel, ...]:
        self.membership.require(event.query.issuer)
        return self.registry.models(turn.now)

    def _match(self, turn: Turn, event: MatchAsked) -> tuple[Candidate, ...]:
        self.membership.require(event.query.issuer)
        return self.registry.match(turn, event.query.issuer, event.query.message)

    def _ban(self, turn: Turn, event: BanAsked) -> None:
        """A banned node loses its stream and its attempts at once."""
        if event.order.message.member == self.identity.key.node_id:
            raise NovaMeshError(
                Code.BAD_REQUEST,
                "this is the coordinator's own PeerId; a pool without it is none",
                "list the nodes with: novamesh coordinator nodes",
            )
        self.membership.ban(turn, event.order)
        wanted = event.order.message
        reason = self.membership.ban_reason(wanted.member)
        if not reason:
            return
        self.registry.dismiss(turn, wanted.member, Code.BANNED, reason)
        for job in self.jobs.on_node(wanted.member):
            self.dispatcher.end_attempt(
                turn, job, Code.NODE_LOST, "the node was banned", lost=True, told=True
            )

    def _tick(self, turn: Turn, event: Ticked) -> None:
        self.dispatcher.tick(turn)
        self.floor.tick(turn)
        self._forget(turn)

    def _forget(self, turn: Turn) -> None:
        """Drop jobs that ended long ago: nobody can submit their terms again by then."""
        oldest_ms = self.jobs.oldest_ended_ms()
        before_ms = turn.now.wall_ms - JOBS_KEPT_MS
        if oldest_ms is not None and oldest_ms < before_ms - FORGET_EVERY_MS:
            turn.log(JobsForgotten(turn.now.wall_ms, before_ms))
