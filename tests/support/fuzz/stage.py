"""A coordinator with a client, a node and two jobs, on virtual time: where hostile calls arrive.

Every stage begins alike: job ONE is settled, job TWO was given to the node, which has not answered
yet. Services, sequencer and core are the production code; the store keeps the log in memory.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import grpc
import grpc.aio
import structlog
from google.protobuf.message import DecodeError

from novamesh_coordinator.admin_service import AdminService
from novamesh_coordinator.config import CoordinatorConfig
from novamesh_coordinator.core import PoolIdentity
from novamesh_coordinator.events import Record
from novamesh_coordinator.log_chain import Mark, Row, make_rows, read_row
from novamesh_coordinator.node_service import NodeService
from novamesh_coordinator.pool_service import PoolService
from novamesh_coordinator.sequencer import Clock
from novamesh_coordinator.server import load_core, make_door
from novamesh_coordinator.store import Entry
from novamesh_coordinator.stored_log import Loaded
from novamesh_proto import wire
from novamesh_proto.errors import Code, NovaMeshError, parse_code
from novamesh_proto.messages import (
    AttachRequest,
    AttachResponse,
    ErrorDetail,
    JobId,
    JobState,
    NodeLoad,
    SealedJob,
)
from novamesh_proto.names import ERROR_METADATA
from novamesh_proto.v1 import coordinator_pb2 as pb
from novamesh_proto.v1 import coordinator_pb2_grpc, node_pb2_grpc
from support.actors import Attempt, ClientActor, NodeActor, Order
from support.clock import START_MS
from support.fuzz.sealing import repeatable
from support.parties import COORDINATOR, NETWORK
from support.sim.loop import START_S, VirtualLoop, end

POOL: Final = "/novamesh.v1.PoolService/"
ADMIN: Final = "/novamesh.v1.AdminService/"
ATTACH: Final = "/novamesh.v1.NodeService/Attach"
CALL_S: Final = 30.0
MOMENT_S: Final = 0.01
BUGS: Final = frozenset({"a call failed", "a stream failed", "a tick failed"})
REFUSED: Final = frozenset({"message refused"})
CLIENT = ClientActor("client", COORDINATOR.node_id)
OWNER = ClientActor("coordinator", COORDINATOR.node_id)


class MemoryStore:
    """A store that keeps its log in memory, without delay."""

    def __init__(self) -> None:
        self.mark = Mark()
        self.snapshot_seq = 0
        self.unsure = False
        self.rows: list[Row] = []
        self._bodies: dict[JobId, bytes] = {}

    async def load(self) -> Loaded:
        """All of the log, as it would be read from a disk."""
        return Loaded(None, tuple(read_row(row) for row in self.rows))

    async def commit(self, entries: Sequence[Entry]) -> None:
        """Keep it."""
        made, self.mark = make_rows((r for entry in entries for r in entry.records), self.mark)
        self.rows += made
        self._bodies |= dict(entry.body for entry in entries if entry.body is not None)

    async def body(self, job: JobId) -> bytes | None:
        """A sealed job."""
        return self._bodies.get(job)

    async def records_of(self, job: JobId) -> tuple[Record, ...]:
        """All that was decided on a job."""
        return tuple(read_row(row) for row in self.rows if row.job == job)


class Context:
    """What a handler is given: whoever calls has said all it will say, or says more later."""

    def __init__(self, handler: Any) -> None:
        self.said: asyncio.Queue[Any] = asyncio.Queue()
        self.heard: list[bytes] = []
        self.news = asyncio.Event()
        self.refusal: NovaMeshError | None = None
        self._handler = handler

    def peer(self) -> str:
        """Address of the caller."""
        return "ipv4:192.0.2.1:1"

    def time_remaining(self) -> float:
        """Seconds until the deadline."""
        return CALL_S

    def done(self) -> bool:
        """The caller waits for ever."""
        return False

    async def read(self) -> Any:
        """The caller's next message, or EOF."""
        return await self.said.get()

    async def write(self, message: Any) -> None:
        """Answer."""
        await asyncio.sleep(0)
        self.heard.append(self._handler.response_serializer(message))
        self.news.set()

    async def abort(
        self, code: Any, details: str = "", trailing: tuple[tuple[str, bytes], ...] = ()
    ) -> NoReturn:
        """End the call with a status, in which there must be an error of ours."""
        assert code is not grpc.StatusCode.INTERNAL, details
        detail = wire.decode(ErrorDetail, dict(trailing)[ERROR_METADATA])
        self.refusal = NovaMeshError(parse_code(detail.code), detail.message, detail.hint)
        assert self.refusal.code is not Code.INTERNAL, details
        raise grpc.aio.AbortError


class Line:
    """A node's stream as the node sees it."""

    def __init__(self, context: Context, task: asyncio.Task[Any], handler: Any) -> None:
        self.context = context
        self.task = task
        self._handler = handler
        self._read = 0

    def say(self, data: bytes) -> bool:
        """Send bytes; False where gRPC would not take them, and would end the stream."""
        try:
            self.context.said.put_nowait(self._handler.request_deserializer(data))
        except DecodeError:
            return False
        return True

    def send(self, **message: Any) -> None:
        """Send a message."""
        self.say(wire.encode(AttachRequest(**message)))

    def end(self) -> None:
        """Say nothing more."""
        self.context.said.put_nowait(grpc.aio.EOF)

    def messages(self, kind: str) -> list[Any]:
        """All messages of a kind that came so far."""
        came = [wire.decode(AttachResponse, data) for data in self.context.heard]
        return [found for message in came if (found := getattr(message, kind)) is not None]

    async def next(self, kind: str) -> Any:
        """The next message of a kind."""
        while True:
            while self._read < len(self.context.heard):
                message = wire.decode(AttachResponse, self.context.heard[self._read])
                self._read += 1
                if (found := getattr(message, kind)) is not None:
                    return found
            self.context.news.clear()
            async with asyncio.timeout(CALL_S):
                await self.context.news.wait()


@dataclass(frozen=True)
class Orders:
    """What the client of every stage wants, and the descriptor of the node it is sealed to."""

    node: NodeActor
    one: Order
    two: Order
    three: Order  # never handed in


@functools.cache
def orders() -> Orders:
    """The same in every process, so that what was found once can be fed again."""
    node = NodeActor("node", COORDINATOR.node_id)
    advert = node.descriptor(START_MS)
    node.advert = advert
    with repeatable("orders"):
        keys = [f"job-{number}" for number in (1, 2, 3)]
        made = [_actor("client").seal([advert], START_MS, key) for key in keys]
    return Orders(node, *made)


def _actor(name: str) -> ClientActor:
    return ClientActor(name, COORDINATOR.node_id)


class Stage:
    """One coordinator."""

    def __init__(self) -> None:
        self.loop = VirtualLoop()
        self.store = MemoryStore()
        self._methods: dict[str, Any] = {}
        self._honest = 0
        self._surprises: list[str] = []
        self.loop.set_exception_handler(lambda _, what: self._surprises.append(str(what)))
        self.run(self._begin())
        self.written = self.store.mark.seq

    @property
    def changed(self) -> bool:
        """Whether anything was logged since it began."""
        return self.store.mark.seq != self.written

    def run(self, work: Any) -> Any:
        """Do something; whatever the coordinator logs as a failure of its own is raised."""
        self.loop.turns = 0
        with structlog.testing.capture_logs() as logs:
            result = self.loop.run_until_complete(work)
        failures = [log for log in logs if log["event"] in BUGS]
        assert not failures, failures
        assert not self._surprises, self._surprises
        refused = [log for log in logs if log["event"] in REFUSED]
        if refused:
            raise NovaMeshError(Code(refused[0]["code"]), "one of the messages was refused")
        return result

    def close(self) -> None:
        """End it."""
        end(self.loop)

    def now_ms(self) -> int:
        """Everybody's wall clock."""
        return START_MS + round((self.loop.time() - START_S) * 1000)

    def ask(self, method: str, data: bytes) -> list[bytes]:
        """Call a method with one request; its replies.

        Raises:
            NovaMeshError: it was refused.
            AssertionError: the coordinator failed.
        """
        replies: list[bytes] = self.run(self.call(method, data))
        return replies

    async def call(self, method: str, data: bytes) -> list[bytes]:
        """The same from inside."""
        handler = self._methods[method]
        try:
            request = handler.request_deserializer(data)
        except DecodeError:
            raise NovaMeshError(Code.BAD_REQUEST, "gRPC refuses it") from None
        context = Context(handler)
        if handler.response_streaming:
            work = handler.unary_stream(request, context)
        else:
            work = handler.unary_unary(request, context)
        task = self.loop.create_task(work)
        await self.over(task, context)
        reply = None if handler.response_streaming else handler.response_serializer(task.result())
        return context.heard if reply is None else [reply]

    async def over(self, task: asyncio.Task[Any], context: Context) -> None:
        """Wait for the end of a call. Raises what it was refused for."""
        await asyncio.wait([task], timeout=CALL_S)
        if not task.done():  # a job that is followed and goes on
            task.cancel()
            raise NovaMeshError(Code.EXPIRED, "the call's deadline is over")
        if (error := task.exception()) is not None and not isinstance(error, grpc.aio.AbortError):
            raise error
        if context.refusal is not None:
            raise context.refusal
        await asyncio.sleep(MOMENT_S)

    def open_line(self) -> Line:
        """A new stream of a node; says nothing yet."""
        handler = self._methods[ATTACH]
        context = Context(handler)
        task = self.loop.create_task(handler.stream_stream(None, context))
        return Line(context, task, handler)

    def serve_honest_job(self) -> None:
        """Two strangers come, and their job is done.

        Raises:
            AssertionError: it is not.
        """
        self._honest += 1
        client = _actor(f"honest client {self._honest}")
        node = NodeActor(f"honest node {self._honest}", COORDINATOR.node_id)

        async def work() -> None:
            line = await self._enter(client, node)
            order = client.seal([node.descriptor(self.now_ms())], self.now_ms())
            await self._answer(line, await self._submit(client, node, order, line))
            query = wire.to_pb(client.ask(order.id, self.now_ms()))
            (data,) = await self.call(POOL + "GetJob", _bytes(pb.GetJobRequest(query=query)))
            view = pb.GetJobResponse.FromString(data).job
            assert view.state == JobState.SETTLED, f"an honest job ended {view.state}"
            line.end()
            await asyncio.wait([line.task])

        self.run(work())

    async def _begin(self) -> None:
        clock = Clock(self.now_ms, self.loop.time)
        core = await load_core(PoolIdentity(COORDINATOR, NETWORK, open=True), self.store, clock)  # type: ignore[arg-type]
        config = CoordinatorConfig(network=NETWORK, http="", open=True)
        self.door = make_door(core, self.store, config, clock, seed=0)  # type: ignore[arg-type]
        coordinator_pb2_grpc.add_PoolServiceServicer_to_server(PoolService(self.door), self)  # type: ignore[no-untyped-call]
        coordinator_pb2_grpc.add_AdminServiceServicer_to_server(AdminService(self.door), self)  # type: ignore[no-untyped-call]
        node_pb2_grpc.add_NodeServiceServicer_to_server(NodeService(self.door), self)  # type: ignore[no-untyped-call]
        self._loops = [self.loop.create_task(loop()) for loop in self.door.sequencer.loops()]
        client, made = _actor("client"), orders()
        node = NodeActor("node", COORDINATOR.node_id, advert=made.node.advert)
        self.line = await self._enter(client, node)
        self.attempt_one = await self._submit(client, node, made.one, self.line)
        await self._answer(self.line, self.attempt_one)
        self.attempt_two = await self._submit(client, node, made.two, self.line)

    async def _enter(self, client: ClientActor, node: NodeActor) -> Line:
        """Both join, and the node attaches."""
        for actor in (client, node):
            claim = wire.to_pb(actor.claim(self.now_ms()))
            await self.call(POOL + "Join", _bytes(pb.JoinRequest(claim=claim)))
        line = self.open_line()
        challenge = await line.next("challenge")
        line.send(hello=node.hello(challenge.nonce, self.door.key_digest, self.now_ms()))
        await line.next("welcome")
        line.send(load=NodeLoad(node.slots, True))
        await asyncio.sleep(MOMENT_S)
        return line

    async def _submit(
        self, client: ClientActor, node: NodeActor, order: Order, line: Line
    ) -> Attempt:
        request = pb.SubmitRequest(job=wire.to_pb(order.job))
        await self.call(POOL + "Submit", _bytes(request))
        given = await line.next("assignment")
        assert isinstance(given.job, SealedJob)
        del client
        return node.take(given.assignment, order.job)

    async def _answer(self, line: Line, attempt: Attempt) -> None:
        """The node does an attempt."""
        line.send(decision=attempt.decide(self.now_ms()))
        line.send(chunk=attempt.chunk(2))
        line.send(checkpoint=attempt.checkpoint(self.now_ms()))
        line.send(chunk=attempt.chunk(1, final=True))
        line.send(attestation=attempt.attest(self.now_ms()))
        await asyncio.sleep(MOMENT_S)

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """Not needed: the same methods are registered by name."""

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        """Take the methods of a service."""
        self._methods |= {f"/{service}/{name}": handler for name, handler in handlers.items()}

    @property
    def methods(self) -> frozenset[str]:
        """Every method's full name."""
        return frozenset(self._methods)


def _bytes(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data
