"""Dialing: the PeerId is the pin, and every failure says what to do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import grpc
import grpc.aio
import pytest

from novamesh.transport import Dialer, error_from_rpc, open_channel, split_address
from novamesh_proto import limits, wire
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.identity import PrivateKey
from novamesh_proto.messages import ErrorDetail
from novamesh_proto.names import ERROR_METADATA
from novamesh_proto.transport_identity import make_certificate
from novamesh_proto.v1 import coordinator_pb2 as pb
from novamesh_proto.v1 import coordinator_pb2_grpc as rpc

KEY = PrivateKey.from_bytes(b"\x01" * 32)
OTHER = PrivateKey.from_bytes(b"\x02" * 32)
REFUSAL = ErrorDetail(Code.BUSY, "the pool is full", "try again in a moment", 1500)


class _Refusing(rpc.PoolServiceServicer):
    """Refuses Hello with detail and Join without; GetJob answers with more than may be said."""

    async def Hello(self, request: object, context: Any) -> pb.HelloResponse:
        await context.abort(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            REFUSAL.message,
            ((ERROR_METADATA, wire.encode(REFUSAL)),),
        )

    async def GetJob(self, request: object, context: Any) -> pb.GetJobResponse:
        return pb.GetJobResponse(job=pb.JobView(node=bytes(limits.MESSAGE_BYTES_MAX)))


@asynccontextmanager
async def _coordinator(key: PrivateKey, port: int = 0) -> AsyncIterator[str]:
    certificate = make_certificate(key, datetime.now(UTC))
    server = grpc.aio.server()
    rpc.add_PoolServiceServicer_to_server(_Refusing(), server)
    credentials = grpc.ssl_server_credentials(
        [(certificate.private_key_pem, certificate.certificate_pem)]
    )
    port = server.add_secure_port(f"127.0.0.1:{port}", credentials)
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


async def _refusal(awaitable: object) -> NovaMeshError:
    with pytest.raises(NovaMeshError) as caught:
        await awaitable  # type: ignore[misc]
    return caught.value


async def test_right_identity_is_dialed_and_errors_come_through() -> None:
    async with _coordinator(KEY) as address:
        opened = await open_channel(address, KEY.node_id, 5)
        assert len(opened.certificate_key_digest) == 32
        stub = rpc.PoolServiceStub(opened.channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Hello(pb.HelloRequest(), timeout=5)
        error = error_from_rpc(caught.value)
        assert (error.code, error.message) == (Code.BUSY, REFUSAL.message)
        assert (error.hint, error.retry_after_ms) == (REFUSAL.hint, 1500)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Join(pb.JoinRequest(), timeout=5)
        assert error_from_rpc(caught.value).code is Code.UNSUPPORTED
        await opened.close()


async def test_other_identity_is_a_pin_mismatch() -> None:
    async with _coordinator(OTHER) as address:
        error = await _refusal(open_channel(address, KEY.node_id, 5))
    assert error.code is Code.PIN_MISMATCH


async def test_restarted_coordinator_with_a_new_certificate_is_taken() -> None:
    async with _coordinator(KEY) as address:
        first = await open_channel(address, KEY.node_id, 5)
    port = int(address.rpartition(":")[2])
    await first.close()
    async with _coordinator(KEY, port) as address:
        second = await open_channel(address, KEY.node_id, 5)
        assert second.certificate_key_digest != first.certificate_key_digest
        await second.close()


async def test_nobody_there_is_unavailable_with_the_address() -> None:
    async with _coordinator(KEY) as address:
        pass
    error = await _refusal(open_channel(address, KEY.node_id, 5))
    assert error.code is Code.UNAVAILABLE
    assert address in error.message
    assert "novamesh doctor" in error.hint


@asynccontextmanager
async def _listener(answer: bytes) -> AsyncIterator[str]:
    """Something that is no coordinator; it ends only when the dialer has hung up."""
    served = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await reader.read()
        writer.close()
        served.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    yield f"{host}:{port}"
    await asyncio.wait_for(served.wait(), 5)
    server.close()


async def test_silent_server_hits_the_deadline() -> None:
    async with _listener(b"") as address:
        error = await _refusal(open_channel(address, KEY.node_id, 0.2))
    assert error.code is Code.UNAVAILABLE
    assert "within 0.2 s" in error.message


async def test_another_protocol_is_named() -> None:
    async with _listener(b"SSH-2.0-OpenSSH_9.6\r\n") as address:
        error = await _refusal(open_channel(address, KEY.node_id, 5))
    assert error.code is Code.UNAVAILABLE
    assert "TLS" in error.message


async def test_cancelled_dial_leaves_nothing_open() -> None:
    async with _listener(b"") as address:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await open_channel(address, KEY.node_id, 60)


@pytest.mark.parametrize(
    ("text", "split"),
    [
        ("h:1", ("h", 1)),
        ("pool.example.org:7700", ("pool.example.org", 7700)),
        ("[::1]:7", ("::1", 7)),
    ],
)
def test_addresses(text: str, split: tuple[str, int]) -> None:
    assert split_address(text) == split


@pytest.mark.parametrize(
    "text", ["", "h", "h:", ":1", "h:0", "h:65536", "h:x", "::1:7", "[h]:7", "[]:1"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(NovaMeshError) as caught:
        split_address(text)
    assert caught.value.code is Code.BAD_REQUEST


def _failure(status: grpc.StatusCode, *metadata: tuple[str, bytes]) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(
        status, grpc.aio.Metadata(), grpc.aio.Metadata(*metadata), details="gone"
    )


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (grpc.StatusCode.UNAVAILABLE, Code.UNAVAILABLE),
        (grpc.StatusCode.DEADLINE_EXCEEDED, Code.EXPIRED),
        (grpc.StatusCode.CANCELLED, Code.CANCELLED),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Code.BUSY),
        (grpc.StatusCode.INVALID_ARGUMENT, Code.BAD_REQUEST),
        (grpc.StatusCode.UNIMPLEMENTED, Code.UNSUPPORTED),
        (grpc.StatusCode.INTERNAL, Code.INTERNAL),
        (grpc.StatusCode.UNKNOWN, Code.INTERNAL),
    ],
)
def test_bare_status_is_mapped(status: grpc.StatusCode, code: Code) -> None:
    error = error_from_rpc(_failure(status))
    assert error.code is code
    assert error.message.endswith(": gone")
    assert error.hint or code is Code.CANCELLED  # whoever cancelled needs no advice


async def _call_refused(method: str, request: bytes, **options: Any) -> NovaMeshError:
    """How a real server refuses raw bytes before any of our code sees them."""
    async with _coordinator(KEY) as address:
        opened = await open_channel(address, KEY.node_id, 5)
        call = opened.channel.unary_unary(f"/novamesh.v1.PoolService/{method}")
        try:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(request, timeout=5, **options)
        finally:
            await opened.close()
    return error_from_rpc(caught.value)


async def test_message_that_is_too_large_is_no_busy_pool() -> None:
    """Busy pools are asked again; what never fits must not be."""
    ours = await _call_refused("Join", bytes(limits.MESSAGE_BYTES_MAX + 1))
    many = await _call_refused("Join", b"", metadata=(("x-more", "y" * 20_000),))
    theirs = await _call_refused("GetJob", b"")
    for error in (ours, many, theirs):
        assert (error.code, error.meaning.retryable) == (Code.TOO_LARGE, False), error.message
        assert error.hint


async def test_server_that_cannot_read_a_call_is_named() -> None:
    error = await _call_refused("Join", b"\xff\xff\xff")
    assert error.code is Code.INTERNAL
    assert error.message.startswith("the coordinator failed: ")
    assert "pool's owner" in error.hint


def test_damaged_detail_falls_back_to_the_status() -> None:
    error = error_from_rpc(_failure(grpc.StatusCode.UNAVAILABLE, (ERROR_METADATA, b"\xff")))
    assert error.code is Code.UNAVAILABLE
    assert "gone" in error.message


async def test_of_several_addresses_the_one_that_serves_is_dialed_and_then_at_first() -> None:
    async with _coordinator(KEY) as gone:
        pass
    async with _silence() as frozen, _coordinator(KEY) as there:
        dialer = Dialer(f"{gone},{frozen},{there}", KEY.node_id)
        began_s = asyncio.get_running_loop().time()
        first = await dialer.open(4)
        waited_s = asyncio.get_running_loop().time() - began_s
        assert waited_s > 1  # half of what was left went to the one that says nothing
        await first.close()
        again = await asyncio.wait_for(dialer.open(3_600), 30)  # and now nothing does
        await again.close()


async def test_where_nobody_serves_the_most_telling_refusal_is_told() -> None:
    async with _coordinator(KEY) as gone, _coordinator(KEY) as away:
        pass
    error = await _refusal(Dialer(f"{gone},{away}", KEY.node_id).open(5))
    assert error.code is Code.UNAVAILABLE
    assert gone in error.message
    assert away in error.message
    async with _coordinator(OTHER) as other:
        error = await _refusal(Dialer(f"{gone},{other}", KEY.node_id).open(5))
        assert error.code is Code.PIN_MISMATCH
        error = await _refusal(Dialer(f"{other},nowhere", KEY.node_id).open(5))
        assert error.code is Code.BAD_REQUEST


@asynccontextmanager
async def _silence() -> AsyncIterator[str]:
    """Takes connections, as the kernel does for a process that stands still, and says nothing."""
    gone = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await gone.wait()
        writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    try:
        yield f"{host}:{port}"
    finally:
        gone.set()
        server.close()
