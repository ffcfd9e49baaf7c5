"""Keep prompts and answers unreadable in between: sealed bodies, wrapped keys, chained chunks.

    body      ChaCha20-Poly1305(fresh body key, nonce 0, AAD label) over the padded JobBody
    wrap      HPKE base mode (X25519, HKDF-SHA256, ChaCha20-Poly1305), info = label | job id
    chunk key HKDF-SHA256(response key, info = label | job | attempt | fence | node)
    head 0    SHA-256(label | job | attempt | fence | node)
    link i    label | head i | index | tokens | final        the AAD of chunk i, its nonce is i
    head i+1  SHA-256(link i | ciphertext i)
    numbers   big-endian: attempt and tokens 4 bytes, fence and index 8, final 1

Rules: a body key seals one body; one ChunkSealer per (job, attempt, fence, node), so that no
keystream is used twice: a node that lost its sealer abandons the attempt. Lengths are hidden in
buckets (a 0x80 byte, then zeros). What does not open changes no state. The node reads the
plaintext: sealing is against everybody in between. No files, no clock; randomness is the system's.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from novamesh_proto import names, wire
from novamesh_proto.envelope import Verified, message_id
from novamesh_proto.errors import Code, NovaMeshError, PeerError
from novamesh_proto.identity import format_node_id
from novamesh_proto.limits import BODY_BYTES_MAX, BODY_PADDING, CHUNK_BYTES_MAX, CHUNK_PADDING
from novamesh_proto.messages import (
    ChunkBody,
    FinishReason,
    JobBody,
    JobId,
    JobTerms,
    KeyWrap,
    NodeDescriptor,
    NodeId,
    SealedJob,
    StreamChunk,
)

KEY_BYTES: Final = 32
TAG_BYTES: Final = 16

_SUITE: Final = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)
_BODY_NONCE: Final = bytes(12)
_PAD: Final = b"\x80"
_LINK: Final = struct.Struct(f"> {len(names.LABEL_CHUNK)}s 32s Q I ?")
_NONCE: Final = struct.Struct("> 4x Q")
_HINT_OPEN: Final = "ask for new candidates and seal the job again"


@dataclass(frozen=True, slots=True, eq=False)
class HpkeKey:
    """The X25519 key that body keys are wrapped to; it lives as long as its descriptor."""

    public: bytes
    _key: X25519PrivateKey = field(repr=False)

    @staticmethod
    def generate() -> HpkeKey:
        """A new key from the system's randomness."""
        return HpkeKey.from_bytes(os.urandom(KEY_BYTES))

    @staticmethod
    def from_bytes(data: bytes) -> HpkeKey:
        """The key of its 32 bytes.

        Raises:
            NovaMeshError: BAD_KEY if there are not 32 of them.
        """
        if len(data) != KEY_BYTES:
            raise NovaMeshError(
                Code.BAD_KEY, f"an X25519 key has {KEY_BYTES} bytes, this has {len(data)}"
            )
        key = X25519PrivateKey.from_private_bytes(data)
        return HpkeKey(key.public_key().public_bytes_raw(), key)

    def to_bytes(self) -> bytes:
        """The 32 secret bytes."""
        return self._key.private_bytes_raw()

    def unwrap(self, sealed_key: bytes, job: JobId) -> bytes:
        """The body key inside a wrap for this job.

        Raises:
            NovaMeshError: CANNOT_OPEN if it was wrapped for another key or job, or was changed.
        """
        try:
            return _SUITE.decrypt(sealed_key, self._key, info=names.LABEL_REQUEST + job)
        except (InvalidTag, ValueError):
            raise NovaMeshError(
                Code.CANNOT_OPEN, "the body key was wrapped for another key or job", _HINT_OPEN
            ) from None


@dataclass(frozen=True, slots=True)
class SealedBody:
    """A sealed body: `digest` and `commitment` go into the terms, `key` into the wraps."""

    ciphertext: bytes
    key: bytes = field(repr=False)
    digest: bytes
    commitment: bytes


def seal_body(body: JobBody) -> SealedBody:
    """Seal a body under a fresh key.

    Raises:
        NovaMeshError: TOO_LARGE if the sealed body would be above BODY_BYTES_MAX.
    """
    key = os.urandom(KEY_BYTES)
    plaintext = _pad(wire.encode(body), BODY_PADDING, BODY_BYTES_MAX)
    ciphertext = ChaCha20Poly1305(key).encrypt(_BODY_NONCE, plaintext, names.LABEL_BODY)
    return SealedBody(
        ciphertext, key, hashlib.sha256(ciphertext).digest(), body_key_commitment(key)
    )


def wrap_key(body_key: bytes, job: JobId, descriptor: Verified[NodeDescriptor]) -> KeyWrap:
    """Wrap a body key for the node that issued a descriptor.

    Raises:
        NovaMeshError: BAD_KEY if the descriptor's HPKE key is none (a point of small order).
    """
    try:
        sealed_key = _SUITE.encrypt(
            body_key,
            X25519PublicKey.from_public_bytes(descriptor.message.hpke_key),
            info=names.LABEL_REQUEST + job,
        )
    except ValueError:
        node = format_node_id(descriptor.issuer)
        raise PeerError(Code.BAD_KEY, "this node's HPKE key is of small order", node) from None
    return KeyWrap(descriptor.issuer, descriptor.id, sealed_key)


def open_body(
    job: SealedJob, terms: Verified[JobTerms], hpke_key: HpkeKey, node: NodeId
) -> JobBody:
    """The body of a job, for the node that a wrap names.

    Raises:
        NovaMeshError: CANNOT_OPEN if body, wrap, key, padding, seed or forced prefix is not what
            the terms promise.
    """
    if message_id(job.terms) != terms.id:
        raise NovaMeshError(Code.CANNOT_OPEN, "these terms belong to another job")
    promised = terms.message
    same_size = len(job.body) == promised.body_bytes
    if not same_size or hashlib.sha256(job.body).digest() != promised.body_digest:
        raise NovaMeshError(Code.CANNOT_OPEN, "the sealed body is not the one the terms name")
    wrap = next((wrap for wrap in job.wraps if wrap.node == node), None)
    if wrap is None:
        raise NovaMeshError(
            Code.CANNOT_OPEN, "the body key was not wrapped for this node", _HINT_OPEN
        )
    body_key = hpke_key.unwrap(wrap.sealed_key, JobId(terms.id))
    if body_key_commitment(body_key) != promised.key_commitment:
        raise NovaMeshError(Code.CANNOT_OPEN, "the body key is not the one the terms commit to")
    body = _decrypt_body(job.body, body_key)
    _check_promises(body, promised)
    return body


def _decrypt_body(ciphertext: bytes, body_key: bytes) -> JobBody:
    try:
        plaintext = ChaCha20Poly1305(body_key).decrypt(_BODY_NONCE, ciphertext, names.LABEL_BODY)
        return wire.decode(JobBody, _unpad(plaintext, BODY_PADDING))
    except InvalidTag:
        raise NovaMeshError(Code.CANNOT_OPEN, "the sealed body does not open") from None
    except NovaMeshError as error:
        raise NovaMeshError(
            Code.CANNOT_OPEN, f"the body opens, but is none: {error.message}"
        ) from None


def _check_promises(body: JobBody, terms: JobTerms) -> None:
    if seed_commitment(body.client_seed) != terms.sampling.seed_commitment:
        raise NovaMeshError(Code.CANNOT_OPEN, "the seed is not the one the terms commit to")
    prefix = body.prefix_token_ids
    continues = (bool(prefix), bool(terms.parent_job), bool(terms.prefix_digest))
    if len(prefix) != terms.start_position or len(set(continues)) != 1:
        raise NovaMeshError(Code.CANNOT_OPEN, "start, parent and forced prefix do not fit together")
    if terms.prefix_digest != forced_prefix_digest(body, JobId(terms.parent_job)):
        raise NovaMeshError(Code.CANNOT_OPEN, "the forced prefix is not the one the terms name")


def body_key_commitment(body_key: bytes) -> bytes:
    """What the terms say about the body key, 32 bytes: a sealed body opens in one way only."""
    return hashlib.sha256(names.LABEL_BODY_KEY + body_key).digest()


def seed_commitment(client_seed: bytes) -> bytes:
    """What the terms say about the client's seed, 32 bytes."""
    return hashlib.sha256(names.LABEL_SEED + client_seed).digest()


def salt(response_key: bytes, job: JobId) -> bytes:
    """The 32 bytes that keep a job's token digests from being guessed."""
    return _derive(response_key, names.LABEL_SALT + job)


def prompt_digest(job_salt: bytes, token_ids: Sequence[int]) -> bytes:
    """Salted digest of the rendered prompt's token ids, 32 bytes."""
    return _token_digest(names.LABEL_PROMPT, job_salt, token_ids)


def output_digest(job_salt: bytes, token_ids: Sequence[int]) -> bytes:
    """Salted digest of the completion token ids of one part, 32 bytes."""
    return _token_digest(names.LABEL_OUTPUT, job_salt, token_ids)


def prefix_digest(job_salt: bytes, token_ids: Sequence[int]) -> bytes:
    """Salted digest of a forced prefix's token ids, 32 bytes."""
    return _token_digest(names.LABEL_PREFIX, job_salt, token_ids)


def forced_prefix_digest(body: JobBody, parent_job: JobId) -> bytes:
    """The terms' `prefix_digest` for a body; empty where it forces nothing.

    Its salt is the one of (this body's response key, parent job): the job's own id is not known
    before its terms are complete.
    """
    if not body.prefix_token_ids:
        return b""
    return prefix_digest(salt(body.response_key, parent_job), body.prefix_token_ids)


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
        self._cipher = ChaCha20Poly1305(_derive(response_key, info))
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
        plaintext = _pad(wire.encode(body), CHUNK_PADDING, CHUNK_BYTES_MAX)
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
            body = wire.decode(ChunkBody, _unpad(plaintext, CHUNK_PADDING))
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


def _derive(secret: bytes, info: bytes) -> bytes:
    return HKDF(SHA256(), KEY_BYTES, salt=None, info=info).derive(secret)


def _token_digest(label: bytes, job_salt: bytes, token_ids: Sequence[int]) -> bytes:
    packed = struct.pack(f"<{len(token_ids)}I", *token_ids)
    return hmac.digest(job_salt, label + packed, "sha256")


def _pad(data: bytes, block: int, sealed_max: int) -> bytes:
    """Pad so that the sealed length, tag included, is a multiple of `block`."""
    padded = data + _PAD
    padded += bytes(-(len(padded) + TAG_BYTES) % block)
    sealed = len(padded) + TAG_BYTES
    if sealed > sealed_max:
        raise NovaMeshError(
            Code.TOO_LARGE, f"sealed this has {sealed} bytes, at most {sealed_max} are taken"
        )
    return padded


def _unpad(padded: bytes, block: int) -> bytes:
    """Undo `_pad`, and refuse what it would never have made."""
    data, mark, zeros = padded.rpartition(_PAD)
    whole = (len(padded) + TAG_BYTES) % block == 0
    if not mark or any(zeros) or len(zeros) >= block or not whole:
        raise NovaMeshError(Code.BAD_REQUEST, "the padding is broken")
    return data
