"""The node's own gRPC service: a part of PoolService, for clients that reach it themselves.

It listens where the owner says, over TLS whose certificate carries the node's PeerId, and on a unix
socket of this user for a tunnel that proved the PeerId of whoever comes through it. Rules: what is
asked is decided by the front; a refusal is a gRPC status by the one table of errors; sizes and
times have bounds, since anybody may knock, and calls pass the doorway; a client that does not read
is hung up on. Only this module, `doorway` and `link` know gRPC.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import grpc
import grpc.aio
import structlog

from novamesh.transport import split_address
from novamesh_node.connections import Connections
from novamesh_node.doorway import CALLS_MAX, Context, Doorway, refuse
from novamesh_node.front import Front
from novamesh_proto import wire
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.identity import PrivateKey
from novamesh_proto.messages import Envelope, SealedJob
from novamesh_proto.server_terms import SERVER_OPTIONS
from novamesh_proto.transport_identity import make_certificate
from novamesh_proto.v1 import coordinator_pb2 as pb
from novamesh_proto.v1 import coordinator_pb2_grpc as rpc

WRITE_S: Final = 10.0  # a client that takes no event for so long is not there any more
GRACE_S: Final = 2.0

Handler = Callable[[Any, Any, Context], Awaitable[Any]]
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Listener:
    """Where clients reach this node: the port of its address, 0 where it has none."""

    port: int


def _guarded(handler: Handler) -> Handler:
    """Our errors become statuses, bugs become INTERNAL and end nothing but their call."""

    @functools.wraps(handler)
    async def guard(service: Any, request: Any, context: Context) -> Any:
        try:
            return await handler(service, request, context)
        except NovaMeshError as error:
            await refuse(context, error)
        except (grpc.aio.AbortError, asyncio.CancelledError):
            raise
        except Exception as bug:  # one call must never end the node
            _log.error("a call failed", kind=type(bug).__name__)
            await refuse(context, NovaMeshError(Code.INTERNAL, "this node failed"))

    return guard


class DirectService(rpc.PoolServiceServicer):
    """What clients may ask of a node."""

    def __init__(self, front: Front, hang_up: Callable[[str], object] = lambda _: None) -> None:
        """`hang_up` ends the connection of a gRPC peer, where that can be done."""
        self._front = front
        self._hang_up = hang_up

    @_guarded
    async def Hello(self, request: pb.HelloRequest, context: Context) -> pb.HelloResponse:
        """Who are you, what time is it?"""
        return pb.HelloResponse(card=wire.to_pb(self._front.card()))

    @_guarded
    async def ListDescriptors(
        self, request: pb.ListDescriptorsRequest, context: Context
    ) -> pb.ListDescriptorsResponse:
        """What do you offer?"""
        return pb.ListDescriptorsResponse(descriptors=[wire.to_pb(self._front.descriptor())])

    @_guarded
    async def Submit(self, request: pb.SubmitRequest, context: Context) -> pb.SubmitResponse:
        """Take this job, which names you alone."""
        view = self._front.submit(wire.from_pb(SealedJob, request.job))
        return pb.SubmitResponse(job=wire.to_pb(view))

    @_guarded
    async def Watch(  # type: ignore[override]  # writes itself, to bound how long a write takes
        self, request: pb.WatchRequest, context: Context
    ) -> None:
        """Follow an attempt."""
        events = self._front.watch(wire.from_pb(Envelope, request.query))
        async with contextlib.aclosing(events):
            async for event in events:
                try:
                    async with asyncio.timeout(WRITE_S):
                        await context.write(wire.to_pb(event))
                except TimeoutError:
                    # The write is still under way, and gRPC ends no call before its writes.
                    self._hang_up(context.peer())
                    raise NovaMeshError(
                        Code.EXPIRED, "the client does not read its events", "watch again"
                    ) from None

    @_guarded
    async def Acknowledge(
        self, request: pb.AcknowledgeRequest, context: Context
    ) -> pb.AcknowledgeResponse:
        """I have received this much."""
        self._front.acknowledge(wire.from_pb(Envelope, request.ack))
        return pb.AcknowledgeResponse()

    @_guarded
    async def SubmitReceipt(
        self, request: pb.SubmitReceiptRequest, context: Context
    ) -> pb.SubmitReceiptResponse:
        """This is what I make of it."""
        self._front.countersign(wire.from_pb(Envelope, request.receipt))
        return pb.SubmitReceiptResponse()

    @_guarded
    async def Cancel(self, request: pb.CancelRequest, context: Context) -> pb.CancelResponse:
        """Stop it."""
        view = self._front.cancel(wire.from_pb(Envelope, request.order))
        return pb.CancelResponse(job=wire.to_pb(view))

    @_guarded
    async def GetJob(self, request: pb.GetJobRequest, context: Context) -> pb.GetJobResponse:
        """Where is it?"""
        view = self._front.view(wire.from_pb(Envelope, request.query))
        return pb.GetJobResponse(job=wire.to_pb(view))

    @_guarded
    async def Join(self, request: pb.JoinRequest, context: Context) -> pb.JoinResponse:
        """A node has no members."""
        raise _for_pools()

    @_guarded
    async def ListModels(
        self, request: pb.ListModelsRequest, context: Context
    ) -> pb.ListModelsResponse:
        """A node's descriptor says it."""
        raise _for_pools()

    @_guarded
    async def Match(self, request: pb.MatchRequest, context: Context) -> pb.MatchResponse:
        """A node chooses among no others."""
        raise _for_pools()

    @_guarded
    async def ListJobs(self, request: pb.ListJobsRequest, context: Context) -> pb.ListJobsResponse:
        """A node keeps no books."""
        raise _for_pools()


@contextlib.asynccontextmanager
async def listen(
    front: Front, key: PrivateKey, address: str, unix_socket: Path | None = None
) -> AsyncIterator[Listener]:
    """Take calls while inside.

    Args:
        front: Who answers.
        key: The node's; the certificate carries its PeerId.
        address: HOST:PORT to listen at, port 0 for any free one; empty for none.
        unix_socket: Where a tunnel of this process ends, or None.

    Raises:
        NovaMeshError: CONFLICT if the port is taken, BAD_REQUEST for no address.
    """
    if not address and unix_socket is None:
        yield Listener(0)
        return
    server = grpc.aio.server(options=SERVER_OPTIONS, maximum_concurrent_rpcs=2 * CALLS_MAX)
    port = _bind(server, key, address) if address else 0
    connections = Connections(port, unix_socket)
    doorway: Any = Doorway(server, front.check_donating)  # a server, as far as services see one
    rpc.add_PoolServiceServicer_to_server(DirectService(front, connections.end), doorway)
    if unix_socket is not None:
        server.add_insecure_port(f"unix:{unix_socket}")
    await server.start()
    looking = asyncio.create_task(connections.run(), name="connections")
    try:
        yield Listener(port)
    finally:
        looking.cancel()
        await server.stop(GRACE_S)


def _bind(server: grpc.aio.Server, key: PrivateKey, address: str) -> int:
    host, port = split_address(address, port_least=0)
    certificate = make_certificate(key, datetime.now(UTC))
    pair = (certificate.private_key_pem, certificate.certificate_pem)
    try:
        # Asked first, because gRPC tells its own log why it cannot listen, and us nothing.
        where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(where[0], where[1], where[2]) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where[4])
        return server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or "another program uses this port"
        raise NovaMeshError(
            Code.CONFLICT,
            f"cannot listen at {address}: {reason}",
            "choose another address:  novamesh node start --listen HOST:PORT  (port 0: any)",
        ) from error


def _for_pools() -> NovaMeshError:
    return NovaMeshError(Code.UNSUPPORTED, "a node does not answer this", "ask its pool")
