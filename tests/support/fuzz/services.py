"""Every gRPC method of a coordinator, fed with bytes: the production services on virtual time.

Refusals are statuses with an error of ours in them. Whatever a handler logs as a failure of its own
is raised here.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
from pathlib import Path
from typing import Any, Final

import grpc
import grpc.aio
import structlog
from google.protobuf.message import DecodeError

from novamesh_coordinator.admin_service import AdminService
from novamesh_proto import wire
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import (
    AttachRequest,
    JobId,
    NodesQuery,
)
from novamesh_proto.v1 import coordinator_pb2 as pb
from novamesh_proto.v1 import coordinator_pb2_grpc
from support.actors import ClientActor, NodeActor
from support.parties import COORDINATOR
from support.sim.loop import VirtualLoop
from support.sim.network import Network
from support.sim.parties import ADDRESS, Coordinator, World
from support.sim.rpc import Context, Hosts, Server
from support.sim.swarm import BUGS

ATTACH: Final = "/novamesh.v1.NodeService/Attach"
POOL: Final = "/novamesh.v1.PoolService/"
CALL_S: Final = 30.0
METHODS: Final = (
    "Hello", "Join", "ListModels", "Match", "Submit", "Watch", "Acknowledge", "SubmitReceipt",
    "Cancel", "GetJob", "ListJobs", "ListNodes", "Ban", "Attach",
)  # fmt: skip


class Services:
    """One coordinator, and its methods by name."""

    def __init__(self) -> None:
        self._loop = VirtualLoop()
        network = Network(self._loop, random.Random(0), lambda text: None)
        self._folder = tempfile.TemporaryDirectory(prefix="fuzz-")
        hosts = Hosts(network)
        world = World(
            self._loop, network, hosts, random.Random(0), lambda text: None, Path(self._folder.name)
        )
        pool = Coordinator(world)
        self._loop.run_until_complete(pool.start())
        server, door = hosts.servers[ADDRESS], pool.door
        assert isinstance(server, Server)
        assert door is not None
        coordinator_pb2_grpc.add_AdminServiceServicer_to_server(AdminService(door), server)  # type: ignore[no-untyped-call]
        self._server = server
        self._client = ClientActor("client", COORDINATOR.node_id)
        self._owner = ClientActor("coordinator", COORDINATOR.node_id)
        self._node = NodeActor("node", COORDINATOR.node_id)

    def close(self) -> None:
        """End it."""
        self._loop.run_until_complete(self._server.process.kill())
        self._loop.close()
        self._folder.cleanup()

    def call(self, method: str, data: bytes) -> None:
        """Feed one method.

        Raises:
            NovaMeshError: it was refused.
            AssertionError: the coordinator failed.
        """
        with structlog.testing.capture_logs() as logs:
            try:
                self._loop.run_until_complete(self._call(method, data))
            finally:
                failures = [log for log in logs if log["event"] in BUGS]
                assert not failures, failures

    async def _call(self, method: str, data: bytes) -> None:
        handler = self._server.methods[method]
        context = Context("stranger", self._loop.time() + CALL_S, _Fed(data), handler)  # type: ignore[arg-type]
        work = _attach if method == ATTACH else _ask
        task = self._server.process.spawn(work(handler, context, data), method)
        await asyncio.wait([task], timeout=CALL_S)
        assert task.done(), f"{method} takes for ever"
        if (error := task.exception()) is not None:
            if not isinstance(error, grpc.aio.AbortError):
                raise error
            assert context.status is not None
            raise NovaMeshError(Code.BAD_REQUEST, context.status.details)

    def samples(self) -> dict[str, bytes]:
        """A request that each method takes."""
        now_ms = self._server.process.now_ms()
        client, node, job = self._client, self._node, JobId(bytes(32))
        advert = node.descriptor(now_ms)
        order = client.seal([advert], now_ms)
        attempt: dict[str, Any] = {
            "Join": pb.JoinRequest(claim=wire.to_pb(client.claim(now_ms))),
            "ListModels": pb.ListModelsRequest(query=wire.to_pb(client.ask_models(now_ms))),
            "Match": pb.MatchRequest(query=wire.to_pb(client.match(now_ms))),
            "Submit": pb.SubmitRequest(job=wire.to_pb(order.job), reservations=[b"r"]),
            "Watch": pb.WatchRequest(query=wire.to_pb(client.watch(job, now_ms))),
            "Cancel": pb.CancelRequest(order=wire.to_pb(client.cancel(job, now_ms))),
            "GetJob": pb.GetJobRequest(query=wire.to_pb(client.ask(job, now_ms))),
            "ListJobs": pb.ListJobsRequest(query=wire.to_pb(client.ask_all(now_ms))),
            "Acknowledge": pb.AcknowledgeRequest(ack=wire.to_pb(client.cancel(job, now_ms))),
            "SubmitReceipt": pb.SubmitReceiptRequest(
                receipt=wire.to_pb(client.cancel(job, now_ms))
            ),
            "Hello": pb.HelloRequest(),
        }
        found = {POOL + name: message.SerializeToString() for name, message in attempt.items()}
        query = self._owner.sign(NodesQuery(self._owner.header(now_ms)))
        admin = "/novamesh.v1.AdminService/"
        found[admin + "ListNodes"] = pb.ListNodesRequest(
            query=wire.to_pb(query)
        ).SerializeToString()
        found[admin + "Ban"] = pb.BanRequest(order=wire.to_pb(query)).SerializeToString()
        hello = node.hello(bytes(32), bytes(32), now_ms)
        found[ATTACH] = wire.encode(AttachRequest(hello=hello))
        assert set(found) == set(self._server.methods)
        return found


class _Fed:
    """A stream whose caller says one thing and hears nothing."""

    def __init__(self, data: bytes) -> None:
        self.up = self
        self.down = self
        self.snapped = False
        self._data = [data]

    async def next(self) -> Any:
        return self._data.pop() if self._data else grpc.aio.EOF

    def send(self, item: Any) -> None:
        pass

    def maybe_snap(self) -> None:
        pass


async def _ask(handler: Any, context: Context, data: bytes) -> None:
    try:
        request = handler.request_deserializer(data)
    except DecodeError:
        return  # gRPC refuses it before we see it
    if handler.response_streaming:
        await handler.unary_stream(request, context)
    else:
        await handler.unary_unary(request, context)


async def _attach(handler: Any, context: Context, data: bytes) -> None:
    try:
        handler.request_deserializer(data)
    except DecodeError:
        return
    await handler.stream_stream(None, context)
