"""A coordinator's node side on loopback: a real pinned gRPC server that a test speaks through.

It proves the hello as the real one does, keeps what a node says in a queue, and says what the test
tells it to. Nothing is stored and nothing decided.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import grpc
import grpc.aio

from novamesh_proto import envelope, wire
from novamesh_proto.errors import MEANINGS, NovaMeshError
from novamesh_proto.identity import PrivateKey
from novamesh_proto.messages import (
    AttachChallenge,
    AttachHello,
    AttachRequest,
    AttachResponse,
    AttachWelcome,
    ErrorDetail,
    JoinClaim,
    NodeDescriptor,
)
from novamesh_proto.names import ERROR_METADATA
from novamesh_proto.transport_identity import ServerCertificate, make_certificate
from novamesh_proto.v1 import coordinator_pb2, coordinator_pb2_grpc, node_pb2_grpc
from support.parties import COORDINATOR, NETWORK


@dataclass
class Attached:
    """One proven stream: what the node said, and how to answer."""

    hello: AttachHello
    descriptor: envelope.Verified[NodeDescriptor]
    context: Any
    heard: asyncio.Queue[AttachRequest] = field(default_factory=asyncio.Queue)
    over: asyncio.Event = field(default_factory=asyncio.Event)

    async def say(self, **message: Any) -> None:
        await self.context.write(wire.to_pb(AttachResponse(**message)))

    async def hear(self) -> AttachRequest:
        return await asyncio.wait_for(self.heard.get(), 10)

    async def until(self, kind: str) -> list[AttachRequest]:
        """Everything up to the next message of a kind, that one included."""
        found = [await self.hear()]
        while getattr(found[-1], kind) is None:
            found.append(await self.hear())
        return found

    def hang_up(self) -> None:
        self.over.set()


class FakeCoordinator(node_pb2_grpc.NodeServiceServicer, coordinator_pb2_grpc.PoolServiceServicer):
    """Both services of one pool; `refusals` are raised one by one before anybody gets in."""

    def __init__(self, key: PrivateKey = COORDINATOR) -> None:
        self.key = key
        self.certificate: ServerCertificate = make_certificate(key, datetime.now(UTC))
        self.address = ""
        self.attached: asyncio.Queue[Attached] = asyncio.Queue()
        self.refusals: list[NovaMeshError] = []
        self.claims: list[JoinClaim] = []
        self.clock_offset_ms = 0

    async def next(self) -> Attached:
        return await asyncio.wait_for(self.attached.get(), 20)

    async def Attach(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]
        await self._refuse(context)
        nonce, now_ms = os.urandom(32), time.time_ns() // 1_000_000 + self.clock_offset_ms
        challenge = AttachChallenge(nonce, now_ms)
        await context.write(wire.to_pb(AttachResponse(challenge=challenge)))
        first = await self._read(context)
        if first is None or first.hello is None:
            return
        hello = envelope.open(
            first.hello, AttachHello, network=NETWORK, audience=self.key.node_id, now_ms=now_ms
        )
        assert hello.message.nonce == nonce
        assert hello.message.certificate_key_digest == self.certificate.key_digest
        descriptor = envelope.open(
            hello.message.descriptor, NodeDescriptor, network=NETWORK, now_ms=now_ms
        )
        assert descriptor.issuer == hello.issuer
        stream = Attached(hello.message, descriptor, context)
        welcome = AttachWelcome(os.urandom(16), hello.message.running)
        await stream.say(welcome=welcome)
        self.attached.put_nowait(stream)
        reader = asyncio.create_task(self._listen(stream), name="fake-reader")
        try:
            await stream.over.wait()
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def _listen(self, stream: Attached) -> None:
        while (message := await self._read(stream.context)) is not None:
            stream.heard.put_nowait(message)
        stream.over.set()

    async def Join(self, request: Any, context: Any) -> Any:
        await self._refuse(context)
        sealed = wire.from_pb(envelope.Envelope, request.claim)
        claim = envelope.open(sealed, JoinClaim, network=NETWORK, audience=self.key.node_id)
        self.claims.append(claim.message)
        return coordinator_pb2.JoinResponse()

    async def _refuse(self, context: Any) -> None:
        if self.refusals:
            error = self.refusals.pop(0)
            detail = ErrorDetail(error.code.value, error.message, error.hint)
            status = getattr(grpc.StatusCode, MEANINGS[error.code].grpc)
            await context.abort(status, error.message, ((ERROR_METADATA, wire.encode(detail)),))

    @staticmethod
    async def _read(context: Any) -> AttachRequest | None:
        message = await context.read()
        return None if message is grpc.aio.EOF else wire.from_pb(AttachRequest, message)


@contextlib.asynccontextmanager
async def coordinator(
    key: PrivateKey = COORDINATOR, address: str = "127.0.0.1:0"
) -> AsyncIterator[FakeCoordinator]:
    """A fake coordinator that listens while inside."""
    made = FakeCoordinator(key)
    server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
    node_pb2_grpc.add_NodeServiceServicer_to_server(made, server)
    coordinator_pb2_grpc.add_PoolServiceServicer_to_server(made, server)
    pair = (made.certificate.private_key_pem, made.certificate.certificate_pem)
    port = server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
    made.address = f"127.0.0.1:{port}"
    await server.start()
    try:
        yield made
    finally:
        await server.stop(0)
