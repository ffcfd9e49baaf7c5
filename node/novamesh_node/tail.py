"""The newest part of what one attempt has sent, kept so that a broken connection loses nothing.

A coordinator that was restarted follows the chain from its first chunk again, so nothing goes just
because it was received. Rules: bounded in bytes, the oldest goes first; kept is what was sealed,
never what was said. A chunk is sealed once: sending it again sends these bytes.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import AttachRequest

TAIL_BYTES_MAX: Final = 4 << 20  # of one attempt: about 40 000 chunks of ordinary size


@dataclass(frozen=True, slots=True)
class _Entry:
    """A message, the chunks on the chain once it is sent, and its size."""

    message: AttachRequest
    chunks: int
    size: int

    def follows(self, chunk: int) -> bool:
        """Whether somebody who holds the chunks before `chunk` may lack this.

        A statement about exactly these chunks may have been lost with the connection.
        """
        return self.chunks > chunk or (self.message.chunk is None and self.chunks == chunk)


class Tail:
    """One attempt's buffer; the attempt's answer owns it."""

    def __init__(self, bytes_max: int = TAIL_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._entries: deque[_Entry] = deque()
        self._bytes = 0
        self._first_chunk = 0  # the oldest chunk that is still here, or would be

    @property
    def size(self) -> int:
        """Bytes kept."""
        return self._bytes

    @property
    def chunks(self) -> int:
        """Chunks on the chain with everything that is here."""
        return self._entries[-1].chunks if self._entries else 0

    @property
    def crowded(self) -> bool:
        """Whether the oldest will have to go before long."""
        return self._bytes > self._bytes_max // 2

    def append(self, message: AttachRequest, chunks: int) -> None:
        """Keep a message; `chunks` counts the chain with it."""
        entry = _Entry(message, chunks, _size(message))
        self._entries.append(entry)
        self._bytes += entry.size
        while self._bytes > self._bytes_max and len(self._entries) > 1:
            self._drop()

    def since(self, chunk: int) -> tuple[AttachRequest, ...]:
        """Everything from that chunk on, and what was said just before it, in order.

        Raises:
            NovaMeshError: STALE if that chunk is no longer here.
        """
        if chunk < self._first_chunk:
            raise NovaMeshError(
                Code.STALE, f"chunk {chunk} is gone, the oldest here is {self._first_chunk}"
            )
        return tuple(entry.message for entry in self._entries if entry.follows(chunk))

    def statements(self) -> tuple[AttachRequest, ...]:
        """What was said of the whole chain so far, without its chunks."""
        last = self.chunks
        kept = (entry for entry in self._entries if entry.chunks == last)
        return tuple(entry.message for entry in kept if entry.message.chunk is None)

    def _drop(self) -> None:
        entry = self._entries.popleft()
        self._bytes -= entry.size
        if entry.message.chunk is not None:
            self._first_chunk = entry.chunks


def _size(message: AttachRequest) -> int:
    """About how much memory a message takes: its payload and what surrounds it."""
    if message.chunk is not None:
        return len(message.chunk.chunk.ciphertext) + 256
    envelopes = (message.checkpoint, message.attestation, message.failure)
    return 256 + sum(len(each.payload) for each in envelopes if each is not None)
