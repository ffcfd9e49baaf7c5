"""A coordinator's core with a clock, an rng and a log, driven by actors: no socket, no disk.

What the core logs is kept, so a test can replay it; what it wants done is kept, so a test can look.
Every message goes through the verifier and over the wire format, as it does in production.
"""

from __future__ import annotations

import random
from typing import Any, TypeVar

from novamesh_coordinator import inputs
from novamesh_coordinator.core import Core, PoolIdentity
from novamesh_coordinator.effects import Assign, Effect, Outcome
from novamesh_coordinator.events import Moment, Record
from novamesh_coordinator.inputs import Input
from novamesh_coordinator.invite import Invite, invite_secret, write_invite
from novamesh_coordinator.verifier import Verifier
from novamesh_proto import wire
from novamesh_proto.messages import (
    AttemptChunk,
    BanOrder,
    CancelOrder,
    ChunkCheckpoint,
    ClientReceipt,
    Envelope,
    InferenceAttestation,
    JobDecision,
    JobFailure,
    JobId,
    JobProgress,
    JobQuery,
    JobsQuery,
    JobView,
    JoinClaim,
    MatchQuery,
    NodeId,
    NodeLoad,
    NodesQuery,
    RunningAttempt,
    SealedJob,
    StreamAck,
)
from support.actors import Attempt, ClientActor, NodeActor, Order
from support.clock import ManualClock
from support.parties import COORDINATOR, NETWORK

T = TypeVar("T", bound=Effect)
KEY_DIGEST = bytes(32)
TICK_S = 1.0


class Table:
    """One pool."""

    def __init__(self, seed: int = 0, open_pool: bool = False) -> None:
        self.identity = PoolIdentity(COORDINATOR, NETWORK, open_pool)
        self.core = Core(self.identity)
        # Whichever core is the present one: a restart makes a new one.
        self.verifier = Verifier(
            COORDINATOR.node_id, NETWORK, lambda party: self.core.membership.require(party)
        )
        self.clock = ManualClock()
        self.rng = random.Random(seed)
        self.log: list[Record] = []
        self.effects: list[Effect] = []
        self.jobs: dict[JobId, SealedJob] = {}
        self.sessions: dict[NodeId, bytes] = {}
        self.owner = ClientActor("coordinator", COORDINATOR.node_id)

    @property
    def now(self) -> Moment:
        """This moment."""
        return Moment(self.clock.now_ms(), int(self.clock.monotonic() * 1_000_000))

    @property
    def now_ms(self) -> int:
        """The wall clock."""
        return self.clock.now_ms()

    def do(self, event: Input) -> Any:
        """One step; returns the reply."""
        outcome: Outcome = self.core.step(event, self.now, self.rng)
        self.log += outcome.records
        self.effects += outcome.effects
        return outcome.reply

    def taken(self, kind: type[T]) -> list[T]:
        """Effects of a kind so far; they are forgotten."""
        found = [effect for effect in self.effects if isinstance(effect, kind)]
        self.effects = [effect for effect in self.effects if not isinstance(effect, kind)]
        return found

    def pass_time(self, seconds: float) -> None:
        """Let time pass and the core notice, as it does all the time."""
        whole, rest_s = divmod(seconds, TICK_S)
        for step_s in (*[TICK_S] * int(whole), rest_s):
            self.clock.advance(step_s)
            self.do(inputs.Ticked())

    def replayed(self) -> Core:
        """A core that only ever saw the log."""
        core = Core(self.identity)
        core.replay(self.log)
        return core

    def restart(self) -> None:
        """The process dies and comes back with its disk."""
        self.core = self.replayed()
        self.core.recover(self.now)
        self.sessions.clear()
        self.effects.clear()

    def invite(self, uses: int = 10, days: float = 1.0, name: bytes = b"invite-1") -> bytes:
        """An invite's token."""
        expires_ms = self.now_ms + int(days * 86_400_000)
        return write_invite(invite_secret(COORDINATOR), Invite(name, expires_ms, uses))

    def join(self, actor: NodeActor | ClientActor, invite: bytes | None = None) -> None:
        """Become a member."""
        token = self.invite() if invite is None else invite
        sealed = actor.claim(self.now_ms, token)
        self.do(inputs.JoinAsked(self.verifier.open(sealed, JoinClaim, self.now_ms)))

    def client(self, name: str = "client") -> ClientActor:
        """A client that has joined."""
        actor = ClientActor(name, COORDINATOR.node_id)
        self.join(actor)
        return actor

    def node(self, name: str = "node", slots: int = 2, attach: bool = True) -> NodeActor:
        """A node that has joined and, if wanted, attached."""
        actor = NodeActor(name, COORDINATOR.node_id, slots=slots)
        self.join(actor)
        if attach:
            self.attach(actor)
        return actor

    def match(self, client: ClientActor, **changes: Any) -> Any:
        """Candidates."""
        sealed = client.match(self.now_ms, **changes)
        return self.do(inputs.MatchAsked(self.verifier.open_query(sealed, MatchQuery, self.now_ms)))

    def submit(self, order: Order, reservations: tuple[bytes, ...] = ()) -> JobView:
        """Hand a sealed job in, over the wire format."""
        job = wire.decode(SealedJob, wire.encode(order.job))
        view: JobView = self.do(self.verifier.open_job(job, reservations, self.now_ms))
        self.jobs[order.id] = job
        return view

    def order(self, client: ClientActor, *nodes: NodeActor, **changes: Any) -> Order:
        """Seal to some nodes and submit."""
        descriptors = []
        for node in nodes:
            advert = self.core.registry._adverts[node.id]
            descriptors.append(advert.descriptor)
        order = client.seal(descriptors, self.now_ms, **changes)
        self.submit(order)
        return order

    def cancel(self, client: ClientActor, job: JobId) -> JobView:
        """Stop a job."""
        sealed = client.cancel(job, self.now_ms)
        view: JobView = self.do(
            inputs.CancelAsked(self.verifier.open(sealed, CancelOrder, self.now_ms))
        )
        return view

    def view(self, client: ClientActor, job: JobId) -> JobView:
        """Where a job is."""
        sealed = client.ask(job, self.now_ms)
        view: JobView = self.do(
            inputs.JobAsked(self.verifier.open_query(sealed, JobQuery, self.now_ms))
        )
        return view

    def views(self, client: ClientActor, count: int = 50) -> tuple[JobView, ...]:
        """A client's jobs."""
        sealed = client.ask_all(self.now_ms, count)
        views: tuple[JobView, ...] = self.do(
            inputs.JobsAsked(self.verifier.open_query(sealed, JobsQuery, self.now_ms))
        )
        return views

    def acknowledge(self, sealed: Envelope) -> None:
        """Pass a StreamAck."""
        self.do(inputs.AckReceived(self.verifier.open(sealed, StreamAck, self.now_ms)))

    def countersign(self, sealed: Envelope) -> None:
        """Hand a ClientReceipt in."""
        self.do(inputs.ReceiptHandedIn(self.verifier.open(sealed, ClientReceipt, self.now_ms)))

    def ban(self, member: NodeId, reason: str = "spam", lift: bool = False) -> None:
        """The owner bans."""
        owner = self.owner
        order = owner.sign(BanOrder(owner.header(self.now_ms), member, reason, lift))
        self.do(inputs.BanAsked(self.verifier.open_order(order, BanOrder, self.now_ms)))

    def nodes(self) -> Any:
        """The owner's list."""
        owner = self.owner
        query = owner.sign(NodesQuery(owner.header(self.now_ms)))
        return self.do(inputs.NodesAsked(self.verifier.open_order(query, NodesQuery, self.now_ms)))

    def attach(
        self,
        node: NodeActor,
        running: tuple[RunningAttempt, ...] = (),
        descriptor: Envelope | None = None,
    ) -> tuple[RunningAttempt, ...]:
        """Open a session; returns what is to go on."""
        nonce, session = self.rng.randbytes(32), self.rng.randbytes(16)
        known = self.core.registry._adverts.get(node.id)
        offered = descriptor or (known.descriptor if known else None)
        sealed = node.hello(nonce, KEY_DIGEST, self.now_ms, running, offered)
        hello, opened = self.verifier.open_hello(sealed, nonce, KEY_DIGEST, self.now_ms)
        resumed: tuple[RunningAttempt, ...] = self.do(
            inputs.NodeAttached(hello, opened, session, 500)
        )
        self.sessions[node.id] = session
        return resumed

    def renew(self, node: NodeActor, **changes: Any) -> None:
        """A newer descriptor of an attached node."""
        node.sequence += 1
        node.advert = node.descriptor(self.now_ms, **changes)
        opened = self.verifier.open_descriptor(node.advert, node.id, self.now_ms)
        self.do(inputs.DescriptorRenewed(node.id, self.sessions[node.id], opened))

    def detach(self, node: NodeActor, stopping: bool = False) -> None:
        """The stream breaks."""
        self.do(inputs.NodeDetached(node.id, self.sessions[node.id], stopping))

    def load(self, node: NodeActor, free: int, accepting: bool = True, reason: str = "") -> None:
        """A NodeLoad."""
        said = NodeLoad(free, accepting, reason)
        self.do(inputs.LoadChanged(node.id, self.sessions[node.id], said))

    def assigned(self, node: NodeActor) -> Attempt:
        """The attempt that was sent to a node last."""
        mine = [e for e in self.effects if isinstance(e, Assign) and e.node == node.id]
        assert mine, "the node was given no work"
        self.effects.remove(mine[-1])
        job = self.jobs.get(mine[-1].job)
        assert job is not None
        wraps = tuple(wrap for wrap in job.wraps if wrap.node == node.id)
        return node.take(mine[-1].assignment, SealedJob(job.terms, job.body, wraps))

    def decide(self, attempt: Attempt, accepted: bool = True, code: str = "busy") -> None:
        """A JobDecision."""
        node = attempt.node
        sealed = attempt.decide(self.now_ms, accepted, code)
        decision = self.verifier.open_of(sealed, JobDecision, node.id, self.now_ms)
        self.do(inputs.AttemptDecided(self.sessions[node.id], decision))

    def progress(self, attempt: Attempt, done: int) -> None:
        """A JobProgress."""
        node = attempt.node
        moved = JobProgress(**attempt.ids, prompt_tokens_done=done)
        self.do(inputs.PrefillMoved(node.id, self.sessions[node.id], moved))

    def send(self, attempt: Attempt, chunk: AttemptChunk) -> None:
        """A chunk, over the wire format."""
        node = attempt.node
        came = wire.decode(AttemptChunk, wire.encode(chunk))
        self.do(inputs.ChunkArrived(node.id, self.sessions[node.id], came))

    def checkpoint(self, attempt: Attempt, **changes: Any) -> None:
        """A ChunkCheckpoint."""
        node = attempt.node
        sealed = attempt.checkpoint(self.now_ms, **changes)
        point = self.verifier.open_of(sealed, ChunkCheckpoint, node.id, self.now_ms)
        self.do(inputs.CheckpointArrived(self.sessions[node.id], point))

    def witness(self, attempt: Attempt, sealed: Envelope) -> None:
        """What the client signed, brought by the attempt's node."""
        node = attempt.node
        opened = self.verifier.open_witness(sealed, self.now_ms)
        self.do(inputs.WitnessArrived(node.id, self.sessions[node.id], opened))

    def attest(self, attempt: Attempt, sealed: Envelope | None = None) -> None:
        """An InferenceAttestation."""
        node = attempt.node
        sealed = sealed or attempt.attest(self.now_ms)
        claim = self.verifier.open_of(sealed, InferenceAttestation, node.id, self.now_ms)
        self.do(inputs.AttemptAttested(self.sessions[node.id], claim))

    def fail(self, attempt: Attempt, code: str = "internal") -> None:
        """A JobFailure."""
        node = attempt.node
        sealed = attempt.fail(self.now_ms, code)
        failure = self.verifier.open_of(sealed, JobFailure, node.id, self.now_ms)
        self.do(inputs.AttemptFailed(self.sessions[node.id], failure))

    def answer(self, attempt: Attempt, chunks: int = 3, step_s: float = 0.01) -> None:
        """Accept, send some chunks of one token, the last one final, and attest."""
        self.decide(attempt)
        for index in range(chunks):
            self.clock.advance(step_s)
            self.send(attempt, attempt.chunk(final=index == chunks - 1))
        self.attest(attempt)
