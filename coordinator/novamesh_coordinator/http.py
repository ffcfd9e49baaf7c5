"""/metrics and /healthz over plain HTTP, for the owner's own tools; loopback by default.

Rules: GET only, one request a connection, a request of at most REQUEST_BYTES_MAX within REQUEST_S,
at most CONNECTIONS_MAX at once: for one more the oldest goes, so that slow clients cost no answer.
No member, job or address is in any answer.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Final

REQUEST_BYTES_MAX: Final = 8 * 1024
REQUEST_S: Final = 5.0
CONNECTIONS_MAX: Final = 32

Page = Callable[[], tuple[int, str, bytes]]  # status, content type, body
_REASONS: Final = {200: "OK", 404: "Not Found", 405: "Method Not Allowed", 503: "Unavailable"}


class Pages:
    """The server's pages by path."""

    def __init__(self, pages: dict[str, Page]) -> None:
        self._pages = pages
        self._open: dict[asyncio.StreamWriter, None] = {}  # oldest first

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        if len(self._open) >= CONNECTIONS_MAX:
            oldest = next(iter(self._open))
            del self._open[oldest]
            oldest.transport.abort()
        self._open[writer] = None
        try:
            async with asyncio.timeout(REQUEST_S):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(self._respond(head))
                await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            return  # whoever asked is gone, slow or not speaking HTTP
        finally:
            self._open.pop(writer, None)
            writer.close()

    def _respond(self, head: bytes) -> bytes:
        method, _, rest = head.partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0].decode("latin-1")
        if method not in (b"GET", b"HEAD"):
            status, kind, body = 405, "text/plain", b"GET only\n"
        elif path in self._pages:
            status, kind, body = self._pages[path]()
        else:
            status, kind, body = 404, "text/plain", b"try /metrics or /healthz\n"
        lines = (
            f"HTTP/1.1 {status} {_REASONS[status]}",
            f"Content-Type: {kind}",
            f"Content-Length: {len(body)}",
            "Connection: close",
            "",
            "",
        )
        return "\r\n".join(lines).encode() + (b"" if method == b"HEAD" else body)


@contextlib.asynccontextmanager
async def serve_pages(host: str, port: int, pages: dict[str, Page]) -> AsyncIterator[int]:
    """Serve while inside; gives the real port. Raises OSError if the port is taken."""
    server = await asyncio.start_server(
        Pages(pages).answer, host.strip("[]"), port, limit=REQUEST_BYTES_MAX
    )
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()
