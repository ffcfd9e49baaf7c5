"""What gRPC alone costs: a server that answers the calls of a job with as many bytes, unthinking.

Same library, same event loop, same TLS, same number of calls and messages of about the same size
as a coordinator's; nothing is parsed, signed, decided or kept. What a coordinator costs above this
is its own; below it no coordinator behind gRPC for Python can be.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from typing import Any, Final

import grpc
import grpc.aio
import psutil
import uvloop

from load.nodes import dial
from novamesh_coordinator.service import SERVER_OPTIONS
from novamesh_proto.transport_identity import make_certificate
from support.parties import COORDINATOR

MATCH: Final = (350, 900)  # bytes asked, bytes answered
SUBMIT: Final = (1_500, 100)
RECEIPT: Final = (500, 0)
WATCH: Final = 250
ASSIGNMENT: Final = 1_800
DECISION: Final = 350
CHUNK: Final = 200
ATTESTATION: Final = 600
TOLD_BEFORE: Final = (80, 80, 400)  # events of a watch before its chunks, and after them
TOLD_AFTER: Final = (600, 500, 700, 80)
PATH: Final = "/load.Floor/"
CONNECTIONS: Final = 16


class Parrot:
    """The server's side."""

    def __init__(self, chunks: int) -> None:
        self._chunks = chunks
        self._jobs: asyncio.Queue[None] = asyncio.Queue()

    async def match(self, request: bytes, context: Any) -> bytes:
        """Match."""
        return bytes(MATCH[1])

    async def submit(self, request: bytes, context: Any) -> bytes:
        """Submit; the node hears of it."""
        self._jobs.put_nowait(None)
        return bytes(SUBMIT[1])

    async def receipt(self, request: bytes, context: Any) -> bytes:
        """SubmitReceipt."""
        return b""

    async def watch(self, request: bytes, context: Any) -> None:
        """Watch."""
        for size in (*TOLD_BEFORE, *[CHUNK] * self._chunks, *TOLD_AFTER):
            await context.write(bytes(size))

    async def attach(self, requests: Any, context: Any) -> None:
        """Attach."""
        speaking = asyncio.create_task(self._speak(context))
        while await context.read() is not grpc.aio.EOF:
            pass
        speaking.cancel()

    async def _speak(self, context: Any) -> None:
        while True:
            await self._jobs.get()
            await context.write(bytes(ASSIGNMENT))

    def handlers(self) -> grpc.GenericRpcHandler:
        """All methods."""
        one = grpc.unary_unary_rpc_method_handler
        methods = {
            "match": one(self.match),
            "submit": one(self.submit),
            "receipt": one(self.receipt),
            "watch": grpc.unary_stream_rpc_method_handler(self.watch),
            "attach": grpc.stream_stream_rpc_method_handler(self.attach),
        }
        return grpc.method_handlers_generic_handler("load.Floor", methods)


async def _serve(chunks: int, ready: Connection) -> None:
    server = grpc.aio.server(options=SERVER_OPTIONS)
    server.add_generic_rpc_handlers((Parrot(chunks).handlers(),))
    made = make_certificate(COORDINATOR, datetime.now(UTC))
    pair = (made.private_key_pem, made.certificate_pem)
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    await server.start()
    ready.send(f"127.0.0.1:{port}")
    await server.wait_for_termination()


def run(chunks: int, ready: Connection) -> None:
    """The process."""
    uvloop.run(_serve(chunks, ready))


class _Caller:
    def __init__(self, channel: grpc.aio.Channel) -> None:
        one = channel.unary_unary
        self.match, self.submit = one(PATH + "match"), one(PATH + "submit")
        self.receipt, self.watch = one(PATH + "receipt"), channel.unary_stream(PATH + "watch")

    async def job(self) -> None:
        """The calls of one job."""
        await self.match(bytes(MATCH[0]))
        await self.submit(bytes(SUBMIT[0]))
        async for _ in self.watch(bytes(WATCH)):
            pass
        await self.receipt(bytes(RECEIPT[0]))


async def _node(channel: grpc.aio.Channel, chunks: int) -> None:
    stream: Any = channel.stream_stream(PATH + "attach")()
    await stream.write(b"hello")
    while await stream.read() is not grpc.aio.EOF:
        for size in (DECISION, *[CHUNK] * chunks, ATTESTATION):
            await stream.write(bytes(size))


async def measure(rate: float, seconds: float, chunks: int) -> float:
    """CPU ms of the server a job, at this rate."""
    theirs, ours = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=run, args=(chunks, ours))
    process.start()
    try:
        address = await asyncio.to_thread(theirs.recv)
        channels = [(await dial(address)).channel for _ in range(CONNECTIONS)]
        node = asyncio.create_task(_node(channels[0], chunks))
        callers = [_Caller(channel) for channel in channels]
        await asyncio.gather(*(caller.job() for caller in callers))
        spent = psutil.Process(process.pid).cpu_times()
        before_s, began_s, jobs = spent.user + spent.system, time.perf_counter(), []
        for number in range(int(rate * seconds)):
            jobs.append(asyncio.create_task(callers[number % CONNECTIONS].job()))
            await asyncio.sleep(max(0.0, began_s + number / rate - time.perf_counter()))
        await asyncio.gather(*jobs)
        spent = psutil.Process(process.pid).cpu_times()
        node.cancel()
        return (spent.user + spent.system - before_s) * 1000 / len(jobs)
    finally:
        process.kill()
        process.join()
