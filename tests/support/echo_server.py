"""A gRPC server on a unix socket that gives back whatever it is sent, whatever it is called."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio


@contextlib.asynccontextmanager
async def echo_server(socket: Path) -> AsyncIterator[None]:
    """It serves while inside."""

    async def answer(request: bytes, context: object) -> bytes:
        return request

    class Echo(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
            return grpc.unary_unary_rpc_method_handler(answer)

    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Echo(),))
    server.add_insecure_port(f"unix:{socket}")
    await server.start()
    try:
        yield
    finally:
        await server.stop(None)
