"""/metrics and /healthz: two pages, GET only, and nobody can hold a connection."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from novamesh_coordinator import http
from novamesh_coordinator.http import serve_pages

PAGES = {"/healthz": lambda: (200, "text/plain", b"ok\n"), "/bad": lambda: (503, "a/b", b"no")}


async def ask(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    try:
        async with asyncio.timeout(5):
            return await reader.read()
    finally:
        writer.close()


@pytest.mark.parametrize(
    ("request_line", "status", "body"),
    [
        (b"GET /healthz HTTP/1.1", b"200 OK", b"ok\n"),
        (b"GET /healthz?x=1 HTTP/1.1", b"200 OK", b"ok\n"),
        (b"HEAD /healthz HTTP/1.1", b"200 OK", b""),
        (b"GET /bad HTTP/1.1", b"503 Unavailable", b"no"),
        (b"GET /else HTTP/1.1", b"404 Not Found", b"try /metrics or /healthz\n"),
        (b"POST /healthz HTTP/1.1", b"405 Method Not Allowed", b"GET only\n"),
        (b"nonsense", b"405 Method Not Allowed", b"GET only\n"),
    ],
)
async def test_pages(request_line: bytes, status: bytes, body: bytes) -> None:
    async with serve_pages("127.0.0.1", 0, PAGES) as port:
        reply = await ask(port, request_line + b"\r\nHost: x\r\n\r\n")
    head, _, got = reply.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 " + status)
    assert got == body
    assert b"Connection: close" in head


async def test_a_slow_or_endless_request_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "REQUEST_S", 0.05)
    async with serve_pages("127.0.0.1", 0, PAGES) as port:
        assert await ask(port, b"GET /healthz HTT") == b""
        assert await ask(port, b"GET /" + b"x" * http.REQUEST_BYTES_MAX) == b""


async def test_slow_clients_keep_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "REQUEST_S", 60.0)
    async with serve_pages("127.0.0.1", 0, PAGES) as port:
        slow = [await asyncio.open_connection("127.0.0.1", port) for _ in range(50)]
        for _, writer in slow:
            writer.write(b"GET /healthz HTT")
        assert (await ask(port, b"GET /healthz HTTP/1.1\r\n\r\n")).endswith(b"ok\n")
        with contextlib.suppress(ConnectionError):
            assert await slow[0][0].read() == b""  # the oldest went
        for _, writer in slow:
            writer.transport.abort()
