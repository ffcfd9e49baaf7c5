"""Where the node's daemon and its commands meet: one JSON line in, one JSON line out.

The daemon listens on a Unix socket of mode 0600; each connection carries one request. Rules: lines
and connections are bounded, every read and write has a deadline; an error travels as code, message
and hint, so that a command fails as the daemon would. What a request does is decided by whoever
owns the handler.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import structlog

from novamesh_proto.errors import Code, NovaMeshError, parse_code

LINE_BYTES_MAX: Final = 64 << 10
CONNECTIONS_MAX: Final = 8
REQUEST_S: Final = 5.0
ANSWER_S: Final = 15.0
_PATH_CHARS_MAX: Final = 100  # a socket's address holds 107

Reply = dict[str, Any]
Handler = Callable[[str, Mapping[str, Any]], Awaitable[Reply]]

_log = structlog.get_logger()


@contextlib.asynccontextmanager
async def listen(path: Path, handler: Handler) -> AsyncIterator[None]:
    """Serve requests on the socket until the block ends. Call it only while holding the lock.

    Raises:
        NovaMeshError: STORAGE if the socket cannot be made.
    """
    places = asyncio.Semaphore(CONNECTIONS_MAX)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if not places.locked():
                async with places:
                    await _serve(reader, writer, handler)
        finally:
            writer.close()

    listener = _bind(path)
    server = await asyncio.start_unix_server(connected, sock=listener, limit=LINE_BYTES_MAX)
    try:
        yield
    finally:
        server.close()
        _unbind(path)


async def ask(
    path: Path, command: str, arguments: Mapping[str, Any] | None = None, deadline_s: float = 0.0
) -> Reply:
    """The daemon's reply to one request.

    Raises:
        NovaMeshError: NOT_FOUND if no node runs here, or what the daemon answers.
    """
    request = json.dumps({**(arguments or {}), "command": command}).encode() + b"\n"
    try:
        async with asyncio.timeout(deadline_s or ANSWER_S):
            with _reachable(path) as address:
                reader, writer = await asyncio.open_unix_connection(address, limit=LINE_BYTES_MAX)
            try:
                writer.write(request)
                await writer.drain()
                line = await reader.readline()
            finally:
                writer.close()
    except (OSError, TimeoutError, ValueError) as error:
        raise _no_node() from error
    return _read_reply(line)


def _read_reply(line: bytes) -> Reply:
    try:
        reply = json.loads(line)
    except ValueError:
        raise _no_node() from None
    if not isinstance(reply, dict):
        raise _no_node()
    error = reply.get("error")
    if isinstance(error, dict):
        code = parse_code(str(error.get("code")))
        raise NovaMeshError(code, str(error.get("message")), str(error.get("hint", "")))
    return reply


async def _serve(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handler: Handler
) -> None:
    """One request and its reply."""
    try:
        async with asyncio.timeout(REQUEST_S):
            line = await reader.readline()
        async with asyncio.timeout(ANSWER_S):
            reply = await _answer(line, handler)
            writer.write(json.dumps(reply).encode() + b"\n")
            await writer.drain()
    except (OSError, TimeoutError, ValueError):
        _log.debug("a control connection was given up")


async def _answer(line: bytes, handler: Handler) -> Reply:
    try:
        request = json.loads(line)
        if not isinstance(request, dict) or not isinstance(request.get("command"), str):
            raise NovaMeshError(Code.BAD_REQUEST, "this is no request")
        return await handler(request.pop("command"), request)
    except (ValueError, RecursionError):
        error = NovaMeshError(Code.BAD_REQUEST, "this is not a line of JSON")
    except NovaMeshError as refused:
        error = refused
    except Exception as bug:  # boundary of a connection: the daemon goes on
        _log.error("an order failed", kind=type(bug).__name__)
        error = NovaMeshError(Code.INTERNAL, f"the node failed: {type(bug).__name__}")
    return {"error": {"code": error.code.value, "message": error.message, "hint": error.hint}}


def _bind(path: Path) -> socket.socket:
    """A listening socket that only its owner may use, from its first moment on.

    What a killed daemon left behind is removed: the lock says that nobody uses it.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        os.fchmod(listener.fileno(), 0o600)
        with _reachable(path) as address:
            listener.bind(address)
        path.chmod(0o600)
        listener.listen(CONNECTIONS_MAX)
    except OSError as error:
        listener.close()
        raise NovaMeshError(
            Code.STORAGE, f"cannot listen on {path}: {error.strerror or error}",
            "check the folder's owner and the free space of its disk",
        ) from error  # fmt: skip
    return listener


def _unbind(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _reachable(path: Path) -> Iterator[str]:
    """An address for a socket at any path: a long one goes through its folder's descriptor."""
    if len(os.fsencode(path)) <= _PATH_CHARS_MAX:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def _no_node() -> NovaMeshError:
    return NovaMeshError(
        Code.NOT_FOUND, "no node runs on this machine", "start one:  novamesh node start"
    )
