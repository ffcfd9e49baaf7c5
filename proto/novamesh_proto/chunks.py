"""The chunks of an answer: sealed one by one, chained so that nobody can reorder or cut them.

    chunk key HKDF-SHA256(response key, info = label | job | attempt | fence | node)
    head 0    SHA-256(label | job | attempt | fence | node)
    link i    label | head i | index | tokens | final        the AAD of chunk i, its nonce is i
    head i+1  SHA-256(link i | ciphertext i)
    numbers   big-endian: attempt and tokens 4 bytes, fence and index 8, final 1

Rules: one ChunkSealer per (job, attempt, fence, node), so that no keystream is used twice: a node
that lost its sealer abandons the attempt. What is refused changes no state. A relay follows the
chain over ciphertexts, with the same head, and learns lengths and token counts only.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from novamesh_proto import names, wire
from novamesh_proto.errors import Code, NovaMeshError, PeerError
from novamesh_proto.identity import format_node_id
from novamesh_proto.limits import CHUNK_BYTES_MAX, CHUNK_PADDING
from novamesh_proto.messages import ChunkBody, FinishReason, JobId, NodeId, StreamChunk
from novamesh_proto.padding import pad, unpad

KEY_BYTES: Final = 32

_LINK: Final = struct.Struct(f"> {len(names.LABEL_CHUNK)}s 32s Q I ?")
_NONCE: Final = struct.Struct("> 4x Q")


def derive_key(secret: bytes, info: bytes) -> bytes:
    """32 bytes of HKDF-SHA256 without salt; `info` begins with a label that names the purpose."""
    return HKDF(SHA256(), KEY_BYTES, salt=None, info=info).derive(secret)


class ChainFollower:
    """The hash chain of one attempt as anybody can follow it, without any key."""

    __slots__ = ("_node", "chunks", "finished", "head", "tokens")

    def __init__(self, job: JobId, attempt: int, fence: int, node: NodeId) -> None:
        self._node = node
        self.head = hashlib.sha256(names.LABEL_CHAIN + _attempt(job, attempt, fence, node)).digest()
        self.chunks = 0
        self.tokens = 0
        self.finished = False

    def link(self, tokens: int, final: bool) -> bytes:
        """The link of the next chunk: its AAD, and what the next head is made from."""
        return _LINK.pack(names.LABEL_CHUNK, self.head, self.chunks, tokens, final)

    def check_next(self, chunk: StreamChunk) -> None:
        """Refuse a chunk that is not the next one.

        Raises:
            NovaMeshError: CORRUPT.
        """
        if self.finished:
            problem = f"chunk {chunk.index} follows the final one"
        elif chunk.index != self.chunks:
            problem = f"chunk {chunk.index} came where {self.chunks} was due"
        else:
            return
        raise NovaMeshError(Code.CORRUPT, f"the answer's chain is broken: {problem}")

    def append(self, link: bytes, ciphertext: bytes, tokens: int, final: bool) -> None:
        """Move on by one chunk."""
        self.head = hashlib.sha256(link + ciphertext).digest()
        self.chunks += 1
        self.tokens += tokens
        self.finished = final

    def follow(self, chunk: StreamChunk) -> None:
        """Take the next chunk as it came from the node, unread.

        Raises:
            PeerError: CORRUPT if it is not the next one; nothing has changed then.
        """
        try:
            self.check_next(chunk)
        except NovaMeshError as error:
            raise PeerError(error.code, error.message, format_node_id(self._node)) from None
        self.append(
            self.link(chunk.tokens, chunk.final), chunk.ciphertext, chunk.tokens, chunk.final
        )


class _ChunkCipher:
    """What sealer and opener share: one attempt's chunk key and chain."""

    __slots__ = ("_chain", "_cipher", "_node")

    def __init__(
        self, response_key: bytes, job: JobId, attempt: int, fence: int, node: NodeId
    ) -> None:
        info = names.LABEL_CHUNK_KEY + _attempt(job, attempt, fence, node)
        self._cipher = ChaCha20Poly1305(derive_key(response_key, info))
        self._chain = ChainFollower(job, attempt, fence, node)
        self._node = node

    @property
    def head(self) -> bytes:
        """Head of the chain so far, 32 bytes."""
        return self._chain.head

    @property
    def chunks(self) -> int:
        """Chunks so far."""
        return self._chain.chunks

    @property
    def position(self) -> int:
        """Completion tokens so far, a forced prefix not counted."""
        return self._chain.tokens

    @property
    def finished(self) -> bool:
        """Whether the final chunk has passed."""
        return self._chain.finished


class ChunkSealer(_ChunkCipher):
    """Seals the chunks of one attempt; make exactly one for an attempt."""

    __slots__ = ()

    def seal(self, body: ChunkBody, final: bool) -> StreamChunk:
        """The next chunk; `final` goes with a finish reason, and nothing follows it.

        Raises:
            NovaMeshError: TOO_LARGE if the chunk must be split, CONFLICT after the final one,
                BAD_REQUEST if `final` and the finish reason do not fit.
        """
        if final is (body.finish is FinishReason.UNSPECIFIED):
            raise NovaMeshError(Code.BAD_REQUEST, "a finish reason goes with the final chunk only")
        plaintext = pad(wire.encode(body), CHUNK_PADDING, CHUNK_BYTES_MAX)
        return self.seal_padded(plaintext, len(body.token_ids), final)

    def seal_padded(self, plaintext: bytes, tokens: int, final: bool) -> StreamChunk:
        """The next chunk over a ChunkBody that is already encoded and padded."""
        chain = self._chain
        if chain.finished:
            raise NovaMeshError(Code.CONFLICT, "nothing follows the final chunk")
        index = chain.chunks
        link = chain.link(tokens, final)
        ciphertext = self._cipher.encrypt(_NONCE.pack(index), plaintext, link)
        chain.append(link, ciphertext, tokens, final)
        return StreamChunk(index, tokens, final, ciphertext)


class ChunkOpener(_ChunkCipher):
    """Opens the chunks of one attempt, in order, each once."""

    __slots__ = ()

    def open(self, chunk: StreamChunk) -> ChunkBody:
        """The body of the next chunk. A chunk that is refused changes nothing.

        Raises:
            NovaMeshError: CORRUPT if it is not the next one, CANNOT_OPEN if its tag does not fit.
            PeerError: CANNOT_OPEN if the node itself sealed what breaks the rules.
        """
        chain = self._chain
        chain.check_next(chunk)
        link = chain.link(chunk.tokens, chunk.final)
        try:
            plaintext = self._cipher.decrypt(_NONCE.pack(chunk.index), chunk.ciphertext, link)
        except InvalidTag:
            raise NovaMeshError(
                Code.CANNOT_OPEN, f"chunk {chunk.index} was changed or is not of this attempt"
            ) from None
        body = self._read(plaintext, chunk)
        chain.append(link, chunk.ciphertext, chunk.tokens, chunk.final)
        return body

    def _read(self, plaintext: bytes, chunk: StreamChunk) -> ChunkBody:
        """From here on the tag has proved that the node made it."""
        try:
            body = wire.decode(ChunkBody, unpad(plaintext, CHUNK_PADDING))
        except NovaMeshError as error:
            problem = error.message
        else:
            if len(body.token_ids) != chunk.tokens:
                problem = "it counts other tokens than it holds"
            elif chunk.final is (body.finish is FinishReason.UNSPECIFIED):
                problem = "its finish reason and final flag do not fit"
            else:
                return body
        message = f"chunk {chunk.index} breaks the rules: {problem}"
        raise PeerError(Code.CANNOT_OPEN, message, format_node_id(self._node))


def _attempt(job: JobId, attempt: int, fence: int, node: NodeId) -> bytes:
    return b"%b%b%b%b" % (job, attempt.to_bytes(4, "big"), fence.to_bytes(8, "big"), node)
