"""Sign a message, and open what somebody signed: DSSE v1 over exact protobuf bytes.

What is signed is the pre-authentication encoding of type and payload, lengths in bytes:

    PAE = "DSSEv1" SP len(type) SP type SP len(payload) SP payload        id = SHA-256(PAE)

Rules: bytes are signed once and never serialised again; nothing of a payload is parsed before its
signature is verified, and only `open` turns an Envelope into a Verified; the type is what the
caller expects, never what the message says; one Ed25519 signature by the header's own issuer; two
messages are the same if and only if their ids are. Checks run from cheap to dear. This module does
not decide who may say what: that is for whoever opens it.
"""

from __future__ import annotations

import hashlib
import heapq
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar

from novamesh_proto import identity, wire
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.identity import PrivateKey
from novamesh_proto.limits import (
    CLOCK_SKEW_MS,
    CONTROL_BYTES_MAX,
    CONTROL_LIFE_MS,
    DESCRIPTOR_KEPT_LIFE_MS,
    RECORD_LIFE_MS,
)
from novamesh_proto.messages import (
    ChunkCheckpoint,
    ClientReceipt,
    Envelope,
    Header,
    InferenceAttestation,
    MessageId,
    NodeDescriptor,
    NodeId,
    RelayReceipt,
    Settlement,
    Signature,
)
from novamesh_proto.names import payload_type

NONCE_BYTES: Final = 16
REPLAYS_MAX: Final = 65_536  # message ids one window remembers, about 10 MB

# Longest life of each message; what is not listed is a control message.
_LIFE_MAX_MS: Final[dict[type, int]] = {
    NodeDescriptor: DESCRIPTOR_KEPT_LIFE_MS,
    ChunkCheckpoint: RECORD_LIFE_MS,
    InferenceAttestation: RECORD_LIFE_MS,
    ClientReceipt: RECORD_LIFE_MS,
    RelayReceipt: RECORD_LIFE_MS,
    Settlement: RECORD_LIFE_MS,
}


class Signable(Protocol):
    """A message that opens with a header; all of these can be signed."""

    @property
    def header(self) -> Header:
        """Who says this, to whom and when."""
        ...


T = TypeVar("T", bound=Signable)


@dataclass(frozen=True, slots=True)
class Verified(Generic[T]):
    """A message whose signature, issuer and type are checked. Only `open` makes one."""

    message: T
    id: MessageId
    issuer: NodeId
    envelope: Envelope


def pae(media_type: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: the bytes that are signed. Lengths count bytes."""
    kind = media_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def message_id(envelope: Envelope) -> MessageId:
    """SHA-256 of what was signed, 32 bytes: the id to dedupe by. It says nothing about validity."""
    return MessageId(hashlib.sha256(pae(envelope.payload_type, envelope.payload)).digest())


def header(
    issuer: PrivateKey | NodeId,
    network: str,
    audience: Iterable[NodeId],
    now_ms: int,
    life_ms: int = 60_000,
    *,
    in_reply_to: bytes = b"",
    nonce: bytes | None = None,
) -> Header:
    """A header issued now. `nonce` is 16 random bytes, fresh ones where none are given."""
    return Header(
        network=network,
        nonce=os.urandom(NONCE_BYTES) if nonce is None else nonce,
        issuer=issuer.node_id if isinstance(issuer, PrivateKey) else issuer,
        audience=tuple(audience),
        issued_at_ms=now_ms,
        expires_at_ms=now_ms + life_ms,
        in_reply_to=in_reply_to,
    )


def seal(message: Signable, key: PrivateKey, bytes_max: int = CONTROL_BYTES_MAX) -> Envelope:
    """Serialise a message once and sign it.

    Raises:
        NovaMeshError: BAD_KEY if its header names another issuer than `key`, NOT_FRESH if its life
            is longer than such a message may have, TOO_LARGE or BAD_REQUEST if a bound is broken:
            nothing is signed that the other side would refuse.
    """
    if message.header.issuer != key.node_id:
        raise NovaMeshError(Code.BAD_KEY, "a message is signed by the issuer its header names")
    _check_life(type(message), message.header)
    kind = payload_type(type(message).__name__)
    payload = wire.encode(message)
    signature = Signature(key.node_id, key.sign(pae(kind, payload)))
    envelope = Envelope(kind, payload, (signature,))
    _check_size(envelope, bytes_max)
    return envelope


def open(
    envelope: Envelope,
    cls: type[T],
    *,
    network: str | None,
    audience: NodeId | None = None,
    now_ms: int | None = None,
    bytes_max: int = CONTROL_BYTES_MAX,
) -> Verified[T]:
    """The verified message of an envelope.

    Args:
        envelope: What came.
        cls: The only message that is taken here.
        network: The only pool that is taken; None only for evidence, whose parts must agree on one.
        audience: Who must be named in the header's audience; None where anybody may read it.
        now_ms: The verifier's wall clock; None checks no freshness (evidence, offline).
        bytes_max: The largest envelope that is looked at.

    Raises:
        NovaMeshError: TOO_LARGE, WRONG_TYPE, BAD_KEY, BAD_SIGNATURE, BAD_REQUEST (verified bytes
            that are no such message), WRONG_NETWORK, WRONG_AUDIENCE, NOT_FRESH.
    """
    _check_size(envelope, bytes_max)
    signature = _only_signature(envelope)
    kind = payload_type(cls.__name__)
    if envelope.payload_type != kind:
        raise NovaMeshError(Code.WRONG_TYPE, f"expected {kind}, got another kind of message")
    signed = pae(kind, envelope.payload)
    issuer = NodeId(signature.keyid)
    identity.verify(issuer, signature.sig, signed)
    message = wire.decode(cls, envelope.payload, bytes_max)
    _check_header(cls, message.header, issuer, network, audience)
    if now_ms is not None:
        _check_fresh(message.header, now_ms)
    return Verified(message, MessageId(hashlib.sha256(signed).digest()), issuer, envelope)


def _check_size(envelope: Envelope, bytes_max: int) -> None:
    size = len(envelope.payload) + len(envelope.payload_type)
    size += sum(len(one.keyid) + len(one.sig) for one in envelope.signatures)
    if size > bytes_max:
        raise NovaMeshError(
            Code.TOO_LARGE, f"this envelope has {size} bytes, at most {bytes_max} are taken"
        )


def _only_signature(envelope: Envelope) -> Signature:
    if len(envelope.signatures) != 1:
        raise NovaMeshError(
            Code.BAD_SIGNATURE,
            f"an envelope has exactly one signature, this has {len(envelope.signatures)}",
        )
    return envelope.signatures[0]


def _check_header(
    cls: type, head: Header, issuer: NodeId, network: str | None, audience: NodeId | None
) -> None:
    if head.issuer != issuer:
        raise NovaMeshError(
            Code.BAD_KEY, "the header names another issuer than the key that signed it"
        )
    if network is not None and head.network != network:
        raise NovaMeshError(
            Code.WRONG_NETWORK,
            f"this message is for pool {head.network!r}, here is {network!r}",
            "join this pool first, or use the configuration of the other one",
        )
    if audience is not None and audience not in head.audience:
        raise NovaMeshError(
            Code.WRONG_AUDIENCE, f"this message is not addressed to {identity.short(audience)}"
        )
    _check_life(cls, head)


def _check_life(cls: type, head: Header) -> None:
    life_ms = head.expires_at_ms - head.issued_at_ms
    life_max_ms = _LIFE_MAX_MS.get(cls, CONTROL_LIFE_MS)
    if not 0 <= life_ms <= life_max_ms:
        raise NovaMeshError(
            Code.NOT_FRESH,
            f"{cls.__name__} is valid for {life_ms / 1000:.1f} s, "
            f"allowed is 0 to {life_max_ms / 1000:.0f} s",
        )


def _check_fresh(head: Header, now_ms: int) -> None:
    """The two clocks may be CLOCK_SKEW_MS apart; beyond that the offset is named."""
    ahead_ms = head.issued_at_ms - now_ms
    if ahead_ms > CLOCK_SKEW_MS:
        problem = f"was issued {ahead_ms / 1000:.1f} s ahead of this clock"
    elif now_ms > head.expires_at_ms + CLOCK_SKEW_MS:
        late_ms = now_ms - head.expires_at_ms
        problem = f"was issued {-ahead_ms / 1000:.1f} s ago and expired {late_ms / 1000:.1f} s ago"
    else:
        return
    raise NovaMeshError(
        Code.NOT_FRESH,
        f"this message {problem}, allowed are {CLOCK_SKEW_MS / 1000:.0f} s",
        "set the clock of the machine that is wrong (timedatectl set-ntp true), then send it again",
    )


class ReplayWindow:
    """The ids of messages that were acted upon, each until nobody would take it any more.

    Bounded, and it fails closed: when it is full of ids that still count, new messages wait. What
    it has forgotten never gets in again, even when the wall clock is set back. For control
    messages; records are deduplicated where they are logged.
    """

    def __init__(self, entries_max: int = REPLAYS_MAX, forgotten_ms: int = -1) -> None:
        self._entries_max = entries_max
        self._ids: set[MessageId] = set()
        self._by_expiry: list[tuple[int, MessageId]] = []  # heap
        self.forgotten_ms = forgotten_ms  # the latest expiry that was forgotten

    def __len__(self) -> int:
        return len(self._ids)

    def admit(self, message_id: MessageId, expires_at_ms: int, now_ms: int) -> None:
        """Remember an id, or refuse it.

        Raises:
            NovaMeshError: REPLAYED if it was here before, NOT_FRESH if it may have been here and
                was forgotten, BUSY if there is no room.
        """
        if message_id in self._ids:
            raise NovaMeshError(Code.REPLAYED, "this message was already acted upon")
        self.forget(now_ms)
        if expires_at_ms <= self.forgotten_ms:
            raise NovaMeshError(Code.NOT_FRESH, "this message has expired", "sign a new one")
        if len(self._ids) >= self._entries_max:
            raise NovaMeshError(
                Code.BUSY, "too many messages in a short time", "try again", retry_after_ms=1_000
            )
        self._ids.add(message_id)
        heapq.heappush(self._by_expiry, (expires_at_ms, message_id))

    def snapshot(self) -> tuple[tuple[int, MessageId], ...]:
        """All (expires_at_ms, id), sorted, the forgotten horizon first with an empty id."""
        return ((self.forgotten_ms, MessageId(b"")), *sorted(self._by_expiry))

    @classmethod
    def restore(
        cls, snapshot: Iterable[tuple[int, MessageId]], entries_max: int = REPLAYS_MAX
    ) -> ReplayWindow:
        """The window that `snapshot` described."""
        (forgotten_ms, _), *entries = snapshot
        window = cls(entries_max, forgotten_ms)
        window._by_expiry = sorted(entries)
        window._ids = {message_id for _, message_id in entries}
        return window

    def forget(self, now_ms: int) -> None:
        """Drop the ids that nobody would take any more."""
        while self._by_expiry and self._by_expiry[0][0] + CLOCK_SKEW_MS < now_ms:
            self.forgotten_ms, forgotten = heapq.heappop(self._by_expiry)
            self._ids.discard(forgotten)
