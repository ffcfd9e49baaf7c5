"""Dial the coordinator's Attach over a pinned channel: the only module here that knows gRPC.

A channel is made anew for every session, so the coordinator's identity is checked every time.
Rules: bytes from the stream become our values at once, limits checked; gRPC's errors become ours
with the reason the server gave. What is said is the session's business.
"""

from __future__ import annotations

import contextlib
from asyncio import InvalidStateError
from collections.abc import AsyncIterator
from typing import Any, Final, NoReturn

import grpc
import grpc.aio

from novamesh.transport import Dialer, error_from_rpc, require_message
from novamesh_node.statements import Signer
from novamesh_proto import envelope, wire
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import AttachRequest, AttachResponse, JoinClaim
from novamesh_proto.v1 import coordinator_pb2, coordinator_pb2_grpc, node_pb2_grpc

CONNECT_S: Final = 10.0
JOIN_S: Final = 10.0


class GrpcStream:
    """One Attach call."""

    def __init__(self, call: Any, certificate_key_digest: bytes) -> None:
        self._call = call
        self.certificate_key_digest = certificate_key_digest

    async def read(self) -> AttachResponse:
        """The next message.

        Raises:
            NovaMeshError: the server's reason; UNAVAILABLE if it just ended the stream.
        """
        try:
            message = await self._call.read()
            if message is grpc.aio.EOF:
                await self._raise_status()
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from None
        return wire.from_pb(AttachResponse, require_message(message))

    async def write(self, message: AttachRequest) -> None:
        """Send a message; waits while the transport is full.

        Raises:
            NovaMeshError: as `read`.
        """
        try:
            await self._call.write(wire.to_pb(message))
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from None
        except (grpc.aio.UsageError, InvalidStateError):  # the call has ended
            await self._raise_status()

    async def end(self) -> None:
        """Say that nothing more will be written."""
        with contextlib.suppress(grpc.aio.AioRpcError, grpc.aio.UsageError, InvalidStateError):
            await self._call.done_writing()

    async def _raise_status(self) -> NoReturn:
        """Why the call ended, which is known at once when it has."""
        code = await self._call.code()
        if code is grpc.StatusCode.OK:
            raise NovaMeshError(Code.UNAVAILABLE, "the coordinator ended the session")
        initial, trailing = (
            await self._call.initial_metadata(),
            await self._call.trailing_metadata(),
        )
        details = await self._call.details()
        raise error_from_rpc(grpc.aio.AioRpcError(code, initial, trailing, details))


class Link:
    """Where the pool is and how this node gets in."""

    def __init__(self, address: str, signer: Signer, invite: bytes) -> None:
        self.signer = signer
        self.invite = invite
        self._dialer = Dialer(address, signer.coordinator)

    @contextlib.asynccontextmanager
    async def dial(self) -> AsyncIterator[GrpcStream]:
        """An open Attach stream to the pinned coordinator.

        Raises:
            NovaMeshError: UNAVAILABLE, PIN_MISMATCH, or what the server refuses.
        """
        channel = await self._dialer.open(CONNECT_S)
        try:
            call = node_pb2_grpc.NodeServiceStub(channel.channel).Attach()
            try:
                yield GrpcStream(call, channel.certificate_key_digest)
            finally:
                call.cancel()
        finally:
            await channel.close()

    async def join(self, now_ms: int) -> None:
        """Become a member with the invite that the join code carried; harmless when repeated.

        Raises:
            NovaMeshError: NOT_A_MEMBER and the like with the pool's reason.
        """
        signer = self.signer
        header = envelope.header(signer.key, signer.network, (signer.coordinator,), now_ms)
        claim = envelope.seal(JoinClaim(header, self.invite), signer.key)
        channel = await self._dialer.open(CONNECT_S)
        try:
            stub = coordinator_pb2_grpc.PoolServiceStub(channel.channel)
            request = coordinator_pb2.JoinRequest(claim=wire.to_pb(claim))
            require_message(await stub.Join(request, timeout=JOIN_S))
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from None
        finally:
            await channel.close()
