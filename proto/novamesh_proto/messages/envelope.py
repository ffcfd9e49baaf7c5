"""Values of envelope.proto, and the identifiers that every other message uses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, NewType

from novamesh_proto.limits import AUDIENCE_MAX, MESSAGE_BYTES_MAX, Size

NodeId = NewType("NodeId", bytes)  # PeerId of any party as bytes: node, client or coordinator
MessageId = NewType("MessageId", bytes)  # SHA-256 of an envelope's pre-authentication encoding
JobId = NewType("JobId", bytes)  # message id of the job's terms
ProfileDigest = NewType("ProfileDigest", bytes)  # SHA-256 of a model profile's manifest

NodeIdField = Annotated[NodeId, Size(38, 38)]
JobIdField = Annotated[JobId, Size(32, 32)]
ProfileField = Annotated[ProfileDigest, Size(32, 32)]
Digest = Annotated[bytes, Size(32, 32)]
OptionalDigest = Annotated[bytes, Size(32, 32, or_empty=True)]
Nonce = Annotated[bytes, Size(16, 16)]


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature; `keyid` is the signer's PeerId."""

    keyid: Annotated[bytes, Size(38, 38)]
    sig: Annotated[bytes, Size(64, 64)]


@dataclass(frozen=True, slots=True)
class Envelope:
    """Signed bytes that nobody has verified yet. Only `envelope.open` turns them into a message."""

    payload_type: Annotated[str, Size(1, 128)]
    payload: Annotated[bytes, Size(0, MESSAGE_BYTES_MAX)]
    signatures: Annotated[tuple[Signature, ...], Size(1, 1)]


@dataclass(frozen=True, slots=True)
class Header:
    """Who says this, to whom, when (wall clock, ms) and in answer to what."""

    network: Annotated[str, Size(1, 64)]
    nonce: Nonce
    issuer: NodeIdField
    audience: Annotated[tuple[NodeIdField, ...], Size(0, AUDIENCE_MAX)]
    issued_at_ms: int
    expires_at_ms: int
    in_reply_to: OptionalDigest = b""
