"""A coordinator that proves who it is and then answers whatever it likes: members refuse it.

What is inside of messages that can be read is the business of tests/fuzz; here it is calls that
gRPC itself stumbles over. A node has no port that anybody could call: it only dials.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any

import grpc
import grpc.aio
import pytest

from novamesh.clock import Clock
from novamesh.config import Pool
from novamesh.pool import PoolConnection
from novamesh_node.link import Link
from novamesh_node.statements import Signer
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.identity import format_node_id
from novamesh_proto.limits import MESSAGE_BYTES_MAX
from novamesh_proto.messages import JobId
from novamesh_proto.names import ERROR_METADATA
from novamesh_proto.transport_identity import make_certificate
from support.parties import COORDINATOR, NETWORK, party

PATIENCE_S = 1.0
Behave = Callable[[Any], Any]


async def talk_nonsense(context: Any) -> None:
    await context.write(b"\x0a\x50abc")


async def send_too_much(context: Any) -> None:
    await context.write(bytes(MESSAGE_BYTES_MAX + 1))


async def send_a_bomb(context: Any) -> None:
    context.set_compression(grpc.Compression.Gzip)
    await context.write(bytes(64 * MESSAGE_BYTES_MAX))


async def refuse_with_nonsense(context: Any) -> None:
    await context.abort(grpc.StatusCode.NOT_FOUND, "x", ((ERROR_METADATA, b"\xff\xff"),))


async def refuse_at_length(context: Any) -> None:
    # More than a header may have in all, which is what a client takes of trailers too.
    await context.abort(grpc.StatusCode.NOT_FOUND, "x" * 20_000)


async def be_unknown(context: Any) -> None:
    raise RuntimeError


ANSWERS: dict[Behave, frozenset[Code]] = {
    talk_nonsense: frozenset({Code.BAD_REQUEST}),
    send_too_much: frozenset({Code.TOO_LARGE}),
    send_a_bomb: frozenset({Code.TOO_LARGE}),
    refuse_with_nonsense: frozenset({Code.NOT_FOUND}),
    refuse_at_length: frozenset({Code.TOO_LARGE, Code.BUSY}),
    be_unknown: frozenset({Code.INTERNAL}),
}


class _Everything(grpc.GenericRpcHandler):
    """Answers every method alike."""

    def __init__(self, behave: Behave) -> None:
        self._behave = behave

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        async def answer(said: Any, context: Any) -> None:
            await self._behave(context)

        def raw(data: bytes) -> bytes:
            return data

        return grpc.stream_stream_rpc_method_handler(answer, raw, raw)


@contextlib.asynccontextmanager
async def serving(behave: Behave) -> AsyncIterator[str]:
    """The address of one that does this."""
    server = grpc.aio.server(options=(("grpc.max_send_message_length", -1),))
    server.add_generic_rpc_handlers((_Everything(behave),))
    shown = make_certificate(COORDINATOR, datetime.now(UTC))
    pair = (shown.private_key_pem, shown.certificate_pem)
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


@contextlib.asynccontextmanager
async def member(address: str) -> AsyncIterator[PoolConnection]:
    """The SDK's connection to it."""
    pool = Pool(address, format_node_id(COORDINATOR.node_id), NETWORK, "")
    clock = Clock(lambda: time.time_ns() // 1_000_000, time.monotonic)
    made = PoolConnection(pool, party("client"), clock, PATIENCE_S * 5)
    try:
        yield made
    finally:
        await made.close()


def link(address: str) -> Link:
    """A node's way to it."""
    return Link(address, Signer(party("node"), NETWORK, COORDINATOR.node_id), b"")


async def ask(address: str) -> None:
    async with member(address) as pool:
        await pool.list_models()


async def say_hello(address: str) -> None:
    async with member(address) as pool:
        await pool.hello()


async def watch(address: str) -> None:
    async with member(address) as pool:
        async for _ in pool.watch(JobId(bytes(32)), 0, 0):
            pass


async def attach(address: str) -> None:
    async with link(address).dial() as stream:
        await stream.read()


async def join(address: str) -> None:
    await link(address).join(time.time_ns() // 1_000_000)


@pytest.mark.parametrize("call", [say_hello, ask, watch, attach, join])
@pytest.mark.parametrize("behave", ANSWERS, ids=lambda behave: behave.__name__)
async def test_it_is_refused_with_an_error_of_ours(
    behave: Behave, call: Callable[[str], Any]
) -> None:
    async with serving(behave) as address:
        with pytest.raises(NovaMeshError) as refused:
            async with asyncio.timeout(30):
                await call(address)
    assert refused.value.code in ANSWERS[behave]
    assert refused.value.message
