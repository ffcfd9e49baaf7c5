"""gRPC through a libp2p stream: a unix socket here, the node's unix socket there.

Rules: the stream's other end is proven by Noise, so a tunnel reaches the node that was named or
nobody; who may ask what is decided by what is signed inside, not here; a node serves so many
streams and so many of one peer, and refuses the rest at once; when either side ends, both do. A
connection that finds no stream is closed, so that gRPC reports UNAVAILABLE.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import trio
from libp2p.abc import IHost, INetStream
from libp2p.custom_types import TProtocol

from novamesh_proto.names import TUNNEL_PROTOCOL

STREAMS_MAX: Final = 64
STREAMS_PER_PEER_MAX: Final = 8
CONNECTIONS_MAX: Final = STREAMS_PER_PEER_MAX  # of one tunnel's socket, at our own side
CHUNK_BYTES: Final = 64 * 1024
OPEN_S: Final = 10.0
_RESET_S: Final = 2.0
_PAUSE_S: Final = 0.1
PROTOCOL: Final = TProtocol(TUNNEL_PROTOCOL)

_log = logging.getLogger(__name__)

Open = Callable[[], Awaitable[INetStream]]


class Entrance:
    """The node's end: every stream of our protocol is led into one unix socket."""

    def __init__(self, host: IHost, socket: Path) -> None:
        self._socket = socket
        self._slots = trio.CapacityLimiter(STREAMS_MAX)
        self._peers: Counter[bytes] = Counter()
        self._missing = False  # so that strangers cannot fill our log
        host.set_stream_handler(PROTOCOL, self.handle)

    async def handle(self, stream: INetStream) -> None:
        """Serve one stream until either side ends."""
        peer = stream.muxed_conn.peer_id.to_bytes()
        if self._peers[peer] >= STREAMS_PER_PEER_MAX or not self._slots.available_tokens:
            _log.debug("tunnel refused: too many streams")
            await end(stream)
            return
        self._peers[peer] += 1
        try:
            async with self._slots:
                await self._lead(stream)
        finally:
            self._peers[peer] -= 1
            if not self._peers[peer]:
                del self._peers[peer]

    async def _lead(self, stream: INetStream) -> None:
        try:
            with trio.fail_after(OPEN_S):
                inner = await trio.open_unix_socket(self._socket)
        except (OSError, trio.TooSlowError) as error:
            if not self._missing:
                _log.warning("tunnel: the node's own socket does not answer (%s)", error)
            self._missing = True
            await end(stream)
            return
        self._missing = False
        await pump(inner, stream)


async def serve_socket(
    path: Path, open_stream: Open, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """The client's end: each connection to a new unix socket gets a stream of its own.

    The socket has mode 0600; its folder must be nobody else's.
    """
    listener = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
    with listener:
        await listener.bind(str(path))
        await trio.Path(path).chmod(0o600)
        listener.listen(CONNECTIONS_MAX)
        slots = trio.CapacityLimiter(CONNECTIONS_MAX)
        async with trio.open_nursery() as nursery:
            task_status.started()
            while True:
                try:
                    inner, _ = await listener.accept()
                except OSError as error:  # one connection, or too many open files: both pass
                    _log.info("tunnel: %s", error)
                    await trio.sleep(_PAUSE_S)
                    continue
                nursery.start_soon(_connect, trio.SocketStream(inner), open_stream, slots)


async def pump(inner: trio.SocketStream, stream: INetStream) -> None:
    """Carry bytes both ways until either side ends, then end both."""
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_outward, inner, stream, nursery.cancel_scope)
            nursery.start_soon(_inward, inner, stream, nursery.cancel_scope)
    finally:
        inner.socket.close()
        await end(stream)


async def end(stream: INetStream) -> None:
    """End a stream at once; one that has ended stays so."""
    with trio.move_on_after(_RESET_S, shield=True):
        try:
            await stream.reset()
        except Exception as error:  # it had ended before us
            _log.debug("reset: %s", type(error).__name__)


async def _connect(
    inner: trio.SocketStream, open_stream: Open, slots: trio.CapacityLimiter
) -> None:
    try:
        if slots.available_tokens:
            async with slots:
                with trio.fail_after(OPEN_S):
                    stream = await open_stream()
                await pump(inner, stream)
    except Exception as error:  # one connection is the boundary: gRPC is told by its end
        _log.info("tunnel: no stream (%s)", type(error).__name__)
    finally:
        inner.socket.close()


async def _outward(inner: trio.SocketStream, stream: INetStream, scope: trio.CancelScope) -> None:
    try:
        async for chunk in inner:
            for start in range(0, len(chunk), CHUNK_BYTES):
                await stream.write(bytes(chunk[start : start + CHUNK_BYTES]))
    except Exception as error:  # a side that broke ends the tunnel like one that closed
        _log.debug("tunnel outward ended: %s", type(error).__name__)
    finally:
        scope.cancel()


async def _inward(inner: trio.SocketStream, stream: INetStream, scope: trio.CancelScope) -> None:
    try:
        while chunk := await stream.read(CHUNK_BYTES):
            await inner.send_all(chunk)
    except Exception as error:  # a side that broke ends the tunnel like one that closed
        _log.debug("tunnel inward ended: %s", type(error).__name__)
    finally:
        scope.cancel()
