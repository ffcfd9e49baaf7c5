"""A whole coordinator and a channel to it without a port: gRPC over a Unix socket, a real store.

Everything is the production code but TLS: the door's certificate digest is 32 zero bytes. Also the
calls that tests make most: `Caller` for what clients ask, `AttachCall` for a node's stream.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from novamesh_coordinator.config import CoordinatorConfig
from novamesh_coordinator.core import PoolIdentity
from novamesh_coordinator.sequencer import Clock
from novamesh_coordinator.server import Running, run_coordinator
from novamesh_coordinator.store import open_store
from novamesh_proto import wire
from novamesh_proto.errors import NovaMeshError, parse_code
from novamesh_proto.messages import (
    AttachRequest,
    AttachResponse,
    Candidate,
    Envelope,
    ErrorDetail,
    JobView,
    PoolModel,
    RunningAttempt,
    WatchResponse,
)
from novamesh_proto.names import ERROR_METADATA
from novamesh_proto.v1 import coordinator_pb2 as pb
from novamesh_proto.v1 import coordinator_pb2_grpc, node_pb2_grpc
from support.actors import NodeActor, Order
from support.parties import COORDINATOR, NETWORK

CALL_S = 10.0
CONFIG = CoordinatorConfig(network=NETWORK, http="", open=True)


@contextlib.asynccontextmanager
async def serve_in_memory(
    folder: Path,
    clock: Clock | None = None,
    config: CoordinatorConfig = CONFIG,
    options: tuple[tuple[str, int], ...] = (),
) -> AsyncIterator[tuple[Running, grpc.aio.Channel]]:
    """A coordinator with its files in `folder`, and a channel to it; an open pool by default."""
    identity = PoolIdentity(COORDINATOR, config.network, config.open)
    # A socket's path has at most 107 bytes, which a test's own folder may exceed.
    with tempfile.TemporaryDirectory(prefix="nm-") as short:
        address = f"unix:{short}/s"
        store = await open_store(folder / "coordinator.db")
        try:
            async with (
                run_coordinator(
                    identity, store, config, clock=clock, seed=0, bind=address
                ) as running,
                grpc.aio.insecure_channel(address, options) as channel,
            ):
                yield running, channel
        finally:
            await store.close()


class Caller:
    """What a client asks, as values; refusals are raised as our errors."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.pool = coordinator_pb2_grpc.PoolServiceStub(channel)
        self.admin = coordinator_pb2_grpc.AdminServiceStub(channel)

    async def join(self, claim: Envelope) -> None:
        """Join."""
        await call(self.pool.Join, pb.JoinRequest(claim=wire.to_pb(claim)))

    async def models(self, query: Envelope) -> tuple[PoolModel, ...]:
        """ListModels."""
        reply = await call(self.pool.ListModels, pb.ListModelsRequest(query=wire.to_pb(query)))
        return tuple(wire.from_pb(PoolModel, model) for model in reply.models)

    async def descriptors(self, query: Envelope) -> list[Envelope]:
        """ListDescriptors."""
        request = pb.ListDescriptorsRequest(query=wire.to_pb(query))
        response = await call(self.pool.ListDescriptors, request)
        return [wire.from_pb(Envelope, each) for each in response.descriptors]

    async def match(self, query: Envelope) -> tuple[Candidate, ...]:
        """Match."""
        reply = await call(self.pool.Match, pb.MatchRequest(query=wire.to_pb(query)))
        return tuple(wire.from_pb(Candidate, one) for one in reply.candidates)

    async def submit(self, order: Order, reservations: tuple[bytes, ...] = ()) -> JobView:
        """Submit."""
        request = pb.SubmitRequest(job=wire.to_pb(order.job), reservations=reservations)
        return wire.from_pb(JobView, (await call(self.pool.Submit, request)).job)

    async def watch(
        self, query: Envelope, timeout_s: float = CALL_S
    ) -> AsyncIterator[WatchResponse]:
        """Watch, to its end."""
        stream: Any = self.pool.Watch(pb.WatchRequest(query=wire.to_pb(query)), timeout=timeout_s)
        try:
            async for event in stream:
                yield wire.from_pb(WatchResponse, event)
        except grpc.aio.AioRpcError as error:
            raise our_error(error) from None
        finally:
            stream.cancel()

    async def cancel(self, order: Envelope) -> JobView:
        """Cancel."""
        reply = await call(self.pool.Cancel, pb.CancelRequest(order=wire.to_pb(order)))
        return wire.from_pb(JobView, reply.job)

    async def acknowledge(self, ack: Envelope) -> None:
        """Acknowledge."""
        await call(self.pool.Acknowledge, pb.AcknowledgeRequest(ack=wire.to_pb(ack)))

    async def countersign(self, receipt: Envelope) -> None:
        """SubmitReceipt."""
        request = pb.SubmitReceiptRequest(receipt=wire.to_pb(receipt))
        await call(self.pool.SubmitReceipt, request)

    async def job(self, query: Envelope) -> JobView:
        """GetJob."""
        reply = await call(self.pool.GetJob, pb.GetJobRequest(query=wire.to_pb(query)))
        return wire.from_pb(JobView, reply.job)

    async def jobs(self, query: Envelope) -> tuple[JobView, ...]:
        """ListJobs."""
        reply = await call(self.pool.ListJobs, pb.ListJobsRequest(query=wire.to_pb(query)))
        return tuple(wire.from_pb(JobView, view) for view in reply.jobs)


class AttachCall:
    """A node's stream."""

    def __init__(self, channel: grpc.aio.Channel, node: NodeActor) -> None:
        self.node = node
        self.stream: Any = node_pb2_grpc.NodeServiceStub(channel).Attach()
        self.resumed: tuple[RunningAttempt, ...] = ()

    async def open(
        self, now_ms: int, running: tuple[RunningAttempt, ...] = (), digest: bytes = bytes(32)
    ) -> None:
        """Challenge, hello, welcome."""
        challenge = (await self.read()).challenge
        assert challenge is not None
        hello = self.node.hello(challenge.nonce, digest, now_ms, running)
        await self.send(hello=hello)
        welcome = (await self.read()).welcome
        assert welcome is not None
        self.resumed = welcome.resume

    async def read(self) -> AttachResponse:
        """The next message of the coordinator."""
        try:
            async with asyncio.timeout(CALL_S):
                message = await self.stream.read()
                if message is grpc.aio.EOF:
                    raise await self._end()
        except grpc.aio.AioRpcError as error:
            raise our_error(error) from None
        return wire.from_pb(AttachResponse, message)

    async def send(self, **field: Any) -> None:
        """Say something."""
        await self.stream.write(wire.to_pb(AttachRequest(**field)))

    async def close(self) -> None:
        """The connection breaks."""
        self.stream.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.stream.code()

    async def _end(self) -> Exception:
        status = grpc.aio.AioRpcError(
            await self.stream.code(),
            await self.stream.initial_metadata(),
            await self.stream.trailing_metadata(),
            await self.stream.details(),
        )
        return our_error(status)


async def call(method: Any, request: Any) -> Any:
    """One call with a deadline; a refusal is raised as our error."""
    try:
        return await method(request, timeout=CALL_S)
    except grpc.aio.AioRpcError as error:
        raise our_error(error) from None


def our_error(error: grpc.aio.AioRpcError) -> Exception:
    """What the coordinator said; the bare gRPC error where it said nothing."""
    for name, value in error.trailing_metadata() or ():
        if name == ERROR_METADATA:
            assert isinstance(value, bytes)
            detail = wire.decode(ErrorDetail, value)
            return NovaMeshError(
                parse_code(detail.code), detail.message, detail.hint, detail.retry_after_ms
            )
    return error
