"""Keep prompts unreadable in between: sealed bodies, wrapped keys, commitments, salted digests.

    body      ChaCha20-Poly1305(fresh body key, nonce 0, AAD label) over the padded JobBody
    wrap      HPKE base mode (X25519, HKDF-SHA256, ChaCha20-Poly1305), info = label | job id
    digest    HMAC-SHA256(salt, label | token ids, 4 bytes each, little-endian)
    salt      HKDF-SHA256(response key, info = label | job id)

Rules: a body key seals one body; the terms commit to it, because this AEAD alone would let one
ciphertext open in two ways. Lengths are hidden in buckets. The node reads the plaintext: sealing
is against everybody in between. The answer's chunks are in `chunks` and offered here too. No
files, no clock; randomness is the system's.
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
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from novamesh_proto import names, wire
from novamesh_proto.chunks import (
    KEY_BYTES,
    ChainFollower,
    ChunkOpener,
    ChunkSealer,
    derive_key,
)
from novamesh_proto.envelope import Verified, message_id
from novamesh_proto.errors import Code, NovaMeshError, PeerError
from novamesh_proto.identity import format_node_id
from novamesh_proto.limits import BODY_BYTES_MAX, BODY_PADDING
from novamesh_proto.messages import (
    JobBody,
    JobId,
    JobTerms,
    KeyWrap,
    NodeDescriptor,
    NodeId,
    SealedJob,
)
from novamesh_proto.padding import pad, unpad

__all__ = [
    "ChainFollower",
    "ChunkOpener",
    "ChunkSealer",
    "HpkeKey",
    "SealedBody",
    "body_key_commitment",
    "forced_prefix_digest",
    "open_body",
    "output_digest",
    "prefix_digest",
    "prompt_digest",
    "salt",
    "seal_body",
    "seed_commitment",
    "wrap_key",
]

_SUITE: Final = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)
_BODY_NONCE: Final = bytes(12)
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
    plaintext = pad(wire.encode(body), BODY_PADDING, BODY_BYTES_MAX)
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
        return wire.decode(JobBody, unpad(plaintext, BODY_PADDING))
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
    return derive_key(response_key, names.LABEL_SALT + job)


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


def _token_digest(label: bytes, job_salt: bytes, token_ids: Sequence[int]) -> bytes:
    packed = struct.pack(f"<{len(token_ids)}I", *token_ids)
    return hmac.digest(job_salt, label + packed, "sha256")
