"""Everybody in the simulated world: the production code of each part, on its simulated machine.

A coordinator is its core, sequencer, hub and services over a disk; a node is its keeper, desk and
session over an engine that counts; a client is the SDK's job session. Each keeps its disk when it
is killed, and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from novamesh.clock import Clock as ClientClock
from novamesh.completion import Completion, Piece
from novamesh.config import ClientSettings, Pool
from novamesh.job_records import JobRecords
from novamesh.order import Options, Order, Prompt
from novamesh.pool import PoolConnection
from novamesh.receipts import Receipts
from novamesh.session import Desk as ClientDesk
from novamesh.session import JobSession
from novamesh.transport import Channel as PinnedChannel
from novamesh_coordinator.config import CoordinatorConfig
from novamesh_coordinator.core import PoolIdentity
from novamesh_coordinator.node_service import NodeService
from novamesh_coordinator.pool_service import PoolService
from novamesh_coordinator.sequencer import Clock as CoordinatorClock
from novamesh_coordinator.server import load_core, make_door
from novamesh_coordinator.service import Door
from novamesh_engine.request import FinishReason, Request, StepOutput, Timing
from novamesh_node import lifecycle
from novamesh_node.admission import Admission, House
from novamesh_node.answer import Usage
from novamesh_node.attestor import Machine
from novamesh_node.clock import Clock as NodeClock
from novamesh_node.descriptor import Advertiser, Facts
from novamesh_node.desk import Desk, Fixtures, Served
from novamesh_node.keeper import Hands, Keeper
from novamesh_node.link import Link
from novamesh_node.replays import ReplayJournal
from novamesh_node.request import Shape
from novamesh_node.session import Line, Session, Stream
from novamesh_node.state import NodeState
from novamesh_node.statements import Signer
from novamesh_node.worker import Output, Ticket
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.identity import format_node_id
from novamesh_proto.messages import ChatMessage, ChatPrompt
from novamesh_proto.v1 import coordinator_pb2_grpc, node_pb2_grpc
from support.clock import START_MS
from support.fake_engine import CONTEXT, FIRST_TOKEN, VOCAB, FakeTokenizer
from support.parties import COORDINATOR, HARDWARE, NETWORK, OFFER, PROFILE, party
from support.sim.disk import Disk, DiskStore
from support.sim.network import Network
from support.sim.process import Process
from support.sim.rpc import Channel, Hosts, Server

ADDRESS = "pool.sim:7700"
IDENTITY = PoolIdentity(COORDINATOR, NETWORK, open=True)
POOL = Pool(ADDRESS, format_node_id(COORDINATOR.node_id), NETWORK, "")
SETTINGS = ClientSettings(retries=5)
NOBODY_THERE = frozenset({Code.MODEL_NOT_FOUND, Code.UNAVAILABLE})


@dataclass
class World:
    """What parties stand on."""

    loop: asyncio.AbstractEventLoop
    network: Network
    hosts: Hosts
    rng: random.Random
    note: Callable[[str], None]
    folder: Path
    pool: Pool = POOL
    epoch_ms: int = START_MS

    def process(self, name: str) -> Process:
        """A new life of a party."""
        return Process(name, self.loop, self.epoch_ms)

    async def dial(self, address: str, coordinator: object, deadline_s: float) -> PinnedChannel:
        """`open_channel` of this world; TLS is not simulated."""
        del coordinator, deadline_s
        await asyncio.sleep(self.network.delay())
        if self.hosts.servers.get(address) is None:
            raise NovaMeshError(Code.UNAVAILABLE, "nobody listens there")
        return PinnedChannel(Channel(self.hosts, address), bytes(32))  # type: ignore[arg-type]  # not a real one


class Coordinator:
    """The pool's coordinator."""

    name = "pool"

    def __init__(self, world: World) -> None:
        self._world = world
        self.disk = Disk(world.rng)
        self.process: Process | None = None
        self.door: Door | None = None

    async def start(self) -> None:
        """Read the log and take calls."""
        world, config = self._world, CoordinatorConfig(network=NETWORK, http="", open=True)
        self.process = process = world.process(self.name)
        await process.spawn(self._serve(process, config), "start")

    async def kill(self) -> None:
        """SIGKILL."""
        if self.process is None:
            return
        self._world.note("pool killed")
        process, self.process, self.door = self.process, None, None
        self._world.hosts.servers[ADDRESS] = None
        process.alive = False
        self._world.network.silence(self.name)
        await process.kill()

    async def _serve(self, process: Process, config: CoordinatorConfig) -> None:
        clock = CoordinatorClock(process.now_ms, process.monotonic)
        store = DiskStore(self.disk)
        core = await load_core(IDENTITY, store, clock)
        door = make_door(core, store, config, clock, seed=self._world.rng.getrandbits(32))
        server = Server(process)
        coordinator_pb2_grpc.add_PoolServiceServicer_to_server(PoolService(door), server)  # type: ignore[no-untyped-call]
        node_pb2_grpc.add_NodeServiceServicer_to_server(NodeService(door), server)  # type: ignore[no-untyped-call]
        for loop in door.sequencer.loops():
            process.spawn(loop(), loop.__name__)
        self.door = door
        self._world.hosts.servers[ADDRESS] = server
        self._world.note(f"pool serves, {store.mark.seq} events")


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
            tokens = () if aborted else (FIRST_TOKEN + position,)
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


class Party:
    """Somebody with a machine: it lives in one process after another."""

    name: str

    def __init__(self, world: World) -> None:
        self._world = world
        self.process: Process | None = None

    async def start(self) -> None:
        """Begin a new life on what is on the disk."""
        self.process = self._world.process(self.name)
        self.process.spawn(self._run(self.process), "run")

    async def kill(self) -> None:
        """SIGKILL."""
        if self.process is not None:
            self._world.note(f"{self.name} killed")
            process, self.process = self.process, None
            process.alive = False
            self._world.network.silence(self.name)
            await process.kill()

    async def _run(self, process: Process) -> None:
        raise NotImplementedError


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
        self.errors: list[NovaMeshError] = []

    async def _run(self, process: Process) -> None:
        clock = NodeClock(process.now_ms, lambda: int(process.monotonic() * 1e9))
        state = NodeState(self._world.folder / self.name)
        state.folder.mkdir(exist_ok=True)
        journal = ReplayJournal(state.folder / "replays", clock.wall_ms())
        try:
            async with asyncio.TaskGroup() as tasks:
                session = self._assemble(process, tasks, clock, state, journal)
                tasks.create_task(session.run(), name="session")
                tasks.create_task(self._tick(session), name="ticker")
        except* NovaMeshError as group:
            self.errors += [e for e in group.exceptions if isinstance(e, NovaMeshError)]
            self._world.note(f"{self.name} ended: {group.exceptions[0]}")
        finally:
            journal.close()

    def _assemble(
        self,
        process: Process,
        tasks: asyncio.TaskGroup,
        clock: NodeClock,
        state: NodeState,
        journal: ReplayJournal,
    ) -> Session:
        signer = Signer(self.key, NETWORK, COORDINATOR.node_id)
        facts = Facts((OFFER,), HARDWARE, "0.1.0 sim", self.slots)
        advertiser = Advertiser(self.key, NETWORK, facts, state.next_sequence)
        house = House(self.key.node_id, signer.coordinator, NETWORK, {PROFILE: CONTEXT})
        worker: Any = SimEngine(process, self.pace)
        served = Served(OFFER.name, worker, FakeTokenizer(), Shape(CONTEXT, VOCAB))
        fixtures = Fixtures(
            Admission(house, journal.window), advertiser, signer, Machine(HARDWARE, "0.1.0 sim"),
            {PROFILE: served}, journal.remember, clock,
        )  # fmt: skip
        self.keeper = keeper = Keeper(self.slots, clock, lifecycle.State())
        desk = Desk(fixtures, keeper, tasks)
        link = Link(self._world.pool.address, signer, b"")
        rng = random.Random(self._world.rng.getrandbits(32))
        line = Line(self._dial(link), lambda: link.join(clock.wall_ms()), clock, rng)
        session = Session(line, signer, advertiser, desk, keeper.load)
        keeper.hands = Hands(session.announce)
        keeper.apply(lifecycle.Loaded())
        return session

    def _dial(self, link: Link) -> Any:
        @contextlib.asynccontextmanager
        async def dial() -> AsyncIterator[Stream]:
            async with link.dial() as stream:
                yield self.tamper(stream)

        return dial

    async def _tick(self, session: Session) -> None:
        while True:
            await asyncio.sleep(1.0)
            session.advertise()


@dataclass
class Wish:
    """One answer that a client wants, and what became of it."""

    tokens: int
    deadline_s: float
    stop_after: int | None = None  # pieces, then it loses interest
    tries: int = 1  # while no node is there
    pieces: list[Piece] = field(default_factory=list)
    completion: Completion | None = None
    error: NovaMeshError | None = None
    over: bool = False


class Client(Party):
    """A client with one answer after the other."""

    def __init__(self, world: World, number: int) -> None:
        super().__init__(world)
        self.name = f"client-{number}"
        self.key = party(self.name)
        self.wishes: list[Wish] = []
        self.resumed: list[Wish] = []
        folder = world.folder / self.name
        self.records = JobRecords(folder / "jobs")
        self.receipts = Receipts(folder / "receipts")

    @property
    def busy(self) -> bool:
        """Whether it still wants something."""
        return self.process is None or bool(self.process.tasks)

    async def _run(self, process: Process) -> None:
        clock = ClientClock(process.now_ms, process.monotonic)
        pool = PoolConnection(self._world.pool, self.key, clock, 5.0)
        desk = ClientDesk(pool, SETTINGS, self.records, self.receipts, clock)
        try:
            for job in self.records.jobs():
                wish = Wish(0, 60.0)
                self.resumed.append(wish)
                record = self.records.load(job)
                wish.tokens = record.terms.message.sampling.max_tokens
                await self._wish(wish, lambda s, r=record, w=wish: s.resume(r, w.deadline_s), desk)
            for number, wish in enumerate(self.wishes):
                if not wish.over:
                    wish.over = True
                    order = _order(f"{self.name} {number}", wish)
                    await self._wish(wish, lambda session, o=order: session.run(o), desk)
                    while wish.tries > 1 and wish.error and wish.error.code in NOBODY_THERE:
                        wish.tries, wish.error = wish.tries - 1, None
                        await asyncio.sleep(0.5)
                        await self._wish(wish, lambda session, o=order: session.run(o), desk)
                    await asyncio.sleep(self._world.rng.uniform(0, 2))
        finally:
            await pool.close()

    async def _wish(self, wish: Wish, work: Any, desk: ClientDesk) -> None:
        async def emit(piece: Piece) -> None:
            wish.pieces.append(piece)
            if wish.stop_after is not None and len(wish.pieces) >= wish.stop_after:
                raise asyncio.CancelledError

        try:
            wish.completion = await work(JobSession(desk, emit))
            self._world.note(f"{self.name} has {len(wish.completion.token_ids)} tokens")
        except NovaMeshError as error:
            wish.error = error
            self._world.note(f"{self.name} got {error.code.value}: {error.message[:60]}")
        except asyncio.CancelledError:
            if wish.stop_after is None or len(wish.pieces) < wish.stop_after:
                raise
            self._world.note(f"{self.name} lost interest")


def _order(prompt: str, wish: Wish) -> Order:
    chat = ChatPrompt((ChatMessage("user", prompt),))
    options = replace(Options(), max_tokens=wish.tokens)
    return Order(OFFER.name, Prompt(chat=chat), options, wish.deadline_s)
