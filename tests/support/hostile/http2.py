"""HTTP/2 by hand, over TLS that believes anybody: what no honest gRPC client would ever send.

Only what attackers need: frames are written as they are asked for, in any order and number, and
what comes back is read and thrown away or looked through for frames of one kind.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from novamesh_proto.names import TLS_SERVER_NAME

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = (
    0x0, 0x1, 0x3, 0x4, 0x6, 0x7, 0x8, 0x9,
)  # fmt: skip
END_STREAM, END_HEADERS, ACK = 0x1, 0x4, 0x1
CONNECT_S: Final = 10.0

Headers = Iterable[tuple[bytes, bytes]]


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _text(data: bytes) -> bytes:
    """A string of HPACK, neither compressed nor indexed."""
    size = len(data)
    if size < 0x7F:
        return bytes([size]) + data
    prefix, rest = bytearray([0x7F]), size - 0x7F
    while rest >= 0x80:
        prefix.append(0x80 | rest & 0x7F)
        rest >>= 7
    prefix.append(rest)
    return bytes(prefix) + data


def block(headers: Headers) -> bytes:
    """A header block, every field as a literal that is never indexed."""
    return b"".join(b"\x10" + _text(name) + _text(value) for name, value in headers)


def request(method: str, *more: tuple[bytes, bytes], timeout: bytes | None = b"20S") -> Headers:
    """What opens a gRPC call of a method such as "/novamesh.v1.PoolService/Hello"."""
    return [
        (b":method", b"POST"),
        (b":scheme", b"https"),
        (b":path", method.encode()),
        (b":authority", TLS_SERVER_NAME.encode()),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        *([(b"grpc-timeout", timeout)] if timeout else []),
        *more,
    ]


def message(data: bytes, compressed: bool = False) -> bytes:
    """A gRPC message as it stands in DATA frames."""
    return struct.pack(">BI", compressed, len(data)) + data


def believing() -> ssl.SSLContext:
    """TLS for somebody who does not care who answers."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    return context


@dataclass
class Frame:
    """One frame that came back."""

    kind: int
    flags: int
    stream: int
    payload: bytes


class Connection:
    """One HTTP/2 connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._stream = -1

    @classmethod
    async def open(cls, port: int, here: str, *, settled: bool = True) -> Connection:
        """TLS, and with `settled` what opens HTTP/2; raises OSError if the server hangs up."""
        async with asyncio.timeout(CONNECT_S):
            reader, writer = await asyncio.open_connection(
                "127.0.0.1",
                port,
                ssl=believing(),
                server_hostname=TLS_SERVER_NAME,
                local_addr=(here, 0),
            )
        connection = cls(reader, writer)
        if settled:
            window = frame(WINDOW_UPDATE, 0, 0, (2**30).to_bytes(4, "big"))
            await connection.send(PREFACE, frame(SETTINGS, 0, 0), frame(SETTINGS, ACK, 0), window)
        return connection

    def next_stream(self) -> int:
        """The number of a new stream."""
        self._stream += 2
        return self._stream

    async def send(self, *data: bytes) -> None:
        """Write bytes as they are; raises OSError if the server hung up."""
        self._writer.write(b"".join(data))
        await self._writer.drain()

    async def begin(self, headers: Headers, flags: int = END_HEADERS) -> int:
        """Open a stream with these headers; its number."""
        stream = self.next_stream()
        await self.send(frame(HEADERS, flags, stream, block(headers)))
        return stream

    async def read(self) -> Frame:
        """The next frame; raises OSError or EOFError when the server hung up."""
        head = await self._reader.readexactly(9)
        size = int.from_bytes(head[:3], "big")
        kind, flags, stream = struct.unpack(">BBI", head[3:])
        return Frame(kind, flags, stream & 0x7FFF_FFFF, await self._reader.readexactly(size))

    async def drain(self) -> None:
        """Throw away what comes until the server hangs up."""
        with contextlib.suppress(OSError):
            while await self._reader.read(65_536):
                pass

    def close(self) -> None:
        """Hang up without a word."""
        self._writer.transport.abort()
