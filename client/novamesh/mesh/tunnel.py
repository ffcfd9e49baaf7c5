"""gRPC through a libp2p stream: a unix socket here, the node's unix socket there.

Rules: the stream's other end is proven by Noise, so a tunnel reaches the node that was named or
nobody; who may ask what is decided by what is signed inside, not here; a node serves so many
streams, so many of one peer and of one address, and refuses the rest at once; the node's server is
told by the name of our end which peer it is, so that each has bounds of its own; when either side
ends, both do. A connection that finds no stream is closed, so that gRPC reports UNAVAILABLE.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
from collections.abc import Awaitable, Callable
from hashlib import blake2b
from pathlib import Path
from typing import Final

import trio
from libp2p.abc import IHost, INetStream
from libp2p.custom_types import TProtocol

from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.guests import Guests
from novamesh_proto.names import TUNNEL_PROTOCOL
from novamesh_proto.places import PLACE_BYTES, place_of_host, tunnel_end

STREAMS_MAX: Final = 64
STREAMS_PER_PEER_MAX: Final = 8
STREAMS_PER_ORIGIN_MAX: Final = 32  # of one address: a peer's name costs nothing
STREAMS_SHARED: Final = 48  # beyond these, only who has a few from its address gets another
CONNECTIONS_MAX: Final = STREAMS_PER_PEER_MAX  # of one tunnel's socket, at our own side
CHUNK_BYTES: Final = 64 * 1024
OPEN_S: Final = 10.0
_RESET_S: Final = 2.0
_PAUSE_S: Final = 0.1
PROTOCOL: Final = TProtocol(TUNNEL_PROTOCOL)

_log = logging.getLogger(__name__)

Open = Callable[[], Awaitable[INetStream]]


class NodeEnd:
    """The node's end: every stream of our protocol is led into one unix socket."""

    def __init__(self, host: IHost, socket: Path) -> None:
        self._socket = socket
        self._peers = Guests(STREAMS_PER_PEER_MAX, STREAMS_MAX)
        self._origins = Guests(STREAMS_PER_ORIGIN_MAX, STREAMS_SHARED)
        self._missing = False  # so that strangers cannot fill our log
        self._secret = os.urandom(32)  # nobody can look for a name with another's digest
        self._numbers = itertools.count()
        host.set_stream_handler(PROTOCOL, self.handle)

    async def handle(self, stream: INetStream) -> None:
        """Serve one stream until either side ends."""
        peer, origin = self._digest(stream.muxed_conn.peer_id.to_bytes()), self._origin(stream)
        try:
            if len(self._origins) >= STREAMS_MAX:
                raise NovaMeshError(Code.BUSY, f"{STREAMS_MAX} tunnels end here")
            with self._origins.hold(origin.hex()), self._peers.hold(peer.hex()):
                await self._lead(stream, tunnel_end(origin, peer, next(self._numbers)))
        except NovaMeshError as error:
            _log.debug("tunnel refused: %s", error.message)
            await end(stream)

    def _origin(self, stream: INetStream) -> bytes:
        """Where a stream's connection comes from, itself or the relay on its way."""
        address = stream.get_remote_address()
        return self._digest(b"" if address is None else place_of_host(address[0]).encode())

    def _digest(self, data: bytes) -> bytes:
        return blake2b(data, digest_size=PLACE_BYTES, key=self._secret).digest()

    async def _lead(self, stream: INetStream, name: str) -> None:
        try:
            with trio.fail_after(OPEN_S):
                inner = await _connect_as(self._socket.with_name(name), self._socket)
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


async def _connect_as(name: Path, server: Path) -> trio.SocketStream:
    """A connection to a unix socket from one with a name, which is all that the server sees."""
    here = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
    try:
        await here.bind(str(name))
        try:
            await here.connect(str(server))
        finally:
            _forget(name)  # the name stays the connection's, and the folder empty
    except BaseException:
        here.close()
        raise
    return trio.SocketStream(here)


def _forget(name: Path) -> None:
    with contextlib.suppress(OSError):
        name.unlink()


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
