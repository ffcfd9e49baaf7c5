"""A volunteer's node: production keeper, desk and session over an engine that counts."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from novamesh_engine.request import FinishReason, Request, StepOutput, Timing
from novamesh_node import lifecycle
from novamesh_node.admission import Admission, House, Policy
from novamesh_node.answer import Usage
from novamesh_node.attestor import Machine
from novamesh_node.clock import Clock
from novamesh_node.crew import Crew, Served, Station
from novamesh_node.descriptor import Advertiser, Facts
from novamesh_node.desk import SLOTS_MAX, Desk, Fixtures
from novamesh_node.devices import PROCESSOR
from novamesh_node.direct_service import DirectService
from novamesh_node.donations import Donations
from novamesh_node.front import Front, Means
from novamesh_node.keeper import Hands, Keeper
from novamesh_node.link import Link
from novamesh_node.presence import Presence
from novamesh_node.replays import ReplayJournal
from novamesh_node.request import Shape
from novamesh_node.session import Line, Session, Stream
from novamesh_node.state import NodeState
from novamesh_node.statements import Signer
from novamesh_node.worker import Output, Ticket
from novamesh_proto import envelope
from novamesh_proto.errors import NovaMeshError
from novamesh_proto.identity import format_node_id
from novamesh_proto.messages import Donation, JobId
from novamesh_proto.v1 import coordinator_pb2_grpc
from support.fake_engine import CONTEXT, FIRST_TOKEN, VOCAB, FakeTokenizer
from support.parties import COORDINATOR, HARDWARE, NETWORK, OFFER, PROFILE, party
from support.sim.process import Process
from support.sim.rpc import Server
from support.sim.world import Party, World

LOOK_S: Final = 5  # how often production's `reach` looks where the machine is


@dataclass
class Pace:
    """How fast an engine is, seconds."""

    prefill_s: float = 0.05
    token_s: float = 0.02


class SimEngine:
    """A worker whose engine counts in virtual time: token n of an answer is `FIRST_TOKEN + n`."""

    alive = True

    def __init__(self, process: Process, pace: Pace) -> None:
        self._process = process
        self._pace = pace
        self._aborted: set[str] = set()
        self._tickets: dict[str, Ticket] = {}
        self.prefilled = 0

    def submit(self, request: Request) -> Ticket:
        """Begin."""
        ticket = Ticket(self, request.id)  # type: ignore[arg-type]
        self._tickets[request.id] = ticket
        self._process.spawn(self._compute(request, ticket), "engine")
        return ticket

    def abort(self, ticket: Ticket) -> None:
        """End at the next token."""
        self._aborted.add(ticket.name)

    def forget(self, ticket: Ticket) -> None:
        """Nobody reads on."""
        self._aborted.add(ticket.name)
        self._tickets.pop(ticket.name, None)

    def release(self, count: int) -> None:
        """Nothing is held back."""

    async def _compute(self, request: Request, ticket: Ticket) -> None:
        began_s = self._process.monotonic()
        for _ in request.prompt:  # as a real engine does: a long prefill shows its progress
            await asyncio.sleep(self._pace.prefill_s / len(request.prompt))
            self.prefilled += 1
        first_s, position = self._process.monotonic(), len(request.prefix)
        finish: FinishReason | None = None
        while finish is None and ticket.name in self._tickets:
            if position > len(request.prefix):
                await asyncio.sleep(self._pace.token_s)
            aborted = ticket.name in self._aborted
            whole = position >= request.sampling.max_tokens  # of a prefix that nobody signed for
            tokens = () if aborted or whole else (FIRST_TOKEN + position,)
            position += len(tokens)
            if aborted:
                finish = FinishReason.ABORTED
            elif position >= request.sampling.max_tokens:
                finish = FinishReason.LENGTH
            timing = self._timing(began_s, first_s) if finish is not None else None
            text = "".join(f"<{token}>" for token in tokens)
            output = StepOutput(request.id, tokens, text, position, (), finish, timing)
            ticket.deliver(Output(output, Usage()))

    def _timing(self, began_s: float, first_s: float) -> Timing:
        now_s = self._process.monotonic()
        prefill = round((first_s - began_s) * 1e6)
        decode = round((now_s - first_s) * 1e6)
        return Timing(0, prefill, decode, prefill, prefill + decode)


class KeptDonations(Donations):
    """A node's, and what it ever kept."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.added: dict[JobId, None] = {}

    def add(self, donation: Donation) -> None:
        """Keep one more."""
        super().add(donation)
        self.added[envelope.message_id(donation.terms)] = None


class Node(Party):
    """A volunteer's node; `tamper` changes its stream, as a liar would."""

    def __init__(self, world: World, number: int, slots: int, pace: Pace) -> None:
        super().__init__(world)
        self.name = f"node-{number}"
        self.key = party(self.name)
        self.slots = slots
        self.pace = pace
        self.tamper: Callable[[Stream], Stream] = lambda stream: stream
        self.keeper: Keeper | None = None
        self.listens = False  # whether clients reach it themselves
        self.address = f"{self.name}.sim:7800"
        self.lives = self.moves = 0
        self.desk: Desk | None = None
        self.session: Session | None = None
        self.died_s = 0.0  # with all that it had in memory
        self.donations = KeptDonations(world.folder / self.name / "donations")
        self.errors: list[NovaMeshError] = []

    async def kill(self) -> None:
        """SIGKILL."""
        self._world.hosts.servers[self.address] = None
        self.died_s = self._world.loop.time()
        await super().kill()

    def move(self, address: str) -> None:
        """Its machine has another address; what listened at the old one is reached there."""
        self._world.note(f"{self.name} is at {address} now")
        self._world.hosts.move(self.name, self.address, address)
        self.address, self.moves = address, self.moves + 1

    @property
    def attached(self) -> bool:
        """Whether the pool and it have each other."""
        return self.session is not None and self.session.connected

    def works_on(self, jobs: Collection[JobId]) -> bool:
        """Whether it is at work on one of these."""
        listed = self.desk.listing() if self.process is not None and self.desk is not None else ()
        return any(one.job in jobs for one in listed)

    async def _run(self, process: Process) -> None:
        self.lives += 1
        clock = Clock(process.now_ms, lambda: int(process.monotonic() * 1e9))
        state = NodeState(self._world.folder / self.name)
        state.folder.mkdir(exist_ok=True)
        journal = ReplayJournal(state.folder / "replays", clock.wall_ms())
        try:
            async with asyncio.TaskGroup() as tasks:
                session, advertiser = self._assemble(process, tasks, clock, state, journal)
                tasks.create_task(session.run(), name="session")
                tasks.create_task(self._tick(session, advertiser), name="ticker")
                if self._world.broker:
                    presence = self._present(advertiser, clock)
                    tasks.create_task(presence.run(), name="presence")
        except* NovaMeshError as group:
            self.errors += [e for e in group.exceptions if isinstance(e, NovaMeshError)]
            self._world.note(f"{self.name} ended: {group.exceptions[0]}")
        finally:
            journal.close()

    def _assemble(
        self,
        process: Process,
        tasks: asyncio.TaskGroup,
        clock: Clock,
        state: NodeState,
        journal: ReplayJournal,
    ) -> tuple[Session, Advertiser]:
        signer = Signer(self.key, NETWORK, COORDINATOR.node_id)
        self.keeper = keeper = Keeper(self.slots, clock, lifecycle.State())
        facts = Facts((OFFER,), HARDWARE, "0.1.0 sim", self.slots)
        advertiser = Advertiser(
            self.key, NETWORK, facts, state.next_sequence, lambda: keeper.load().free_slots
        )
        policy = Policy(donates=self.listens)
        house = House(self.key.node_id, signer.coordinator, NETWORK, {PROFILE: CONTEXT}, policy)
        worker: Any = SimEngine(process, self.pace)
        served = Served(OFFER, worker, FakeTokenizer(), Shape(CONTEXT, VOCAB))
        machine = Machine(HARDWARE, "0.1.0 sim")
        station = Station(PROCESSOR, HARDWARE, machine, {PROFILE: served}, self.slots)
        fixtures = Fixtures(
            Admission(house, journal.window), advertiser, signer, Crew([station], SLOTS_MAX),
            journal.remember, clock,
        )  # fmt: skip
        self.desk = desk = Desk(fixtures, keeper, tasks)
        link = Link(self._world.pool.address, signer, b"")
        rng = random.Random(self._world.rng.getrandbits(32))
        line = Line(self._dial(link), lambda: link.join(clock.wall_ms()), clock, rng)
        self.session = session = Session(
            line, signer, advertiser, desk, keeper.load, self.donations
        )
        if self.listens:
            means = Means(
                desk, signer, advertiser, self.donations, session.donate, lambda: self.slots,
                clock, "sim",
            )  # fmt: skip
            self._listen(process, Front(means, tasks))
            advertiser.listen_at("listen", (self.address,))
        keeper.hands = Hands(session.announce)
        keeper.apply(lifecycle.Loaded())
        return session, advertiser

    def _listen(self, process: Process, front: Front) -> None:
        server = Server(process)
        coordinator_pb2_grpc.add_PoolServiceServicer_to_server(DirectService(front), server)  # type: ignore[no-untyped-call]
        self._world.hosts.servers[self.address] = server

    def _dial(self, link: Link) -> Any:
        @contextlib.asynccontextmanager
        async def dial() -> AsyncIterator[Stream]:
            async with link.dial() as stream:
                yield self.tamper(stream)

        return dial

    def _present(self, advertiser: Advertiser, clock: Clock) -> Presence:
        return Presence(
            self._world.entrance(), NETWORK, format_node_id(self.key.node_id),
            lambda: advertiser.current(clock.wall_ms()), clock,
            random.Random(self._world.rng.getrandbits(32)),
        )  # fmt: skip

    async def _tick(self, session: Session, advertiser: Advertiser) -> None:
        for second in itertools.count():
            await asyncio.sleep(1.0)
            if self.listens and second % LOOK_S == 0:
                advertiser.listen_at("listen", (self.address,))
            session.advertise()
