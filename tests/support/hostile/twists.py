"""Seven ways in which a signed message can be wrong, whatever it says, and the code for each."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from novamesh_proto import envelope
from novamesh_proto.envelope import Signable
from novamesh_proto.errors import Code
from novamesh_proto.limits import CONTROL_BYTES_MAX, DESCRIPTOR_BYTES_MAX
from novamesh_proto.messages import Envelope, Header, Signature
from novamesh_proto.names import payload_type
from novamesh_proto.v1 import envelope_pb2
from support.actors import Actor
from support.hostile.honest import now_ms
from support.parties import COORDINATOR, NETWORK, party

AGE_MS: Final = 20 * 60_000
Make = Callable[[Header], Signable]


@dataclass(frozen=True)
class Twist:
    """A wrong message, and what it must be refused with: a code, and words of its message."""

    sealed: Envelope
    code: Code
    words: str


def header(
    who: Actor,
    rng: random.Random,
    age_ms: int = 0,
    network: str = NETWORK,
    to: Any = COORDINATOR,
) -> Header:
    """A header that is right where nothing else is asked for."""
    at_ms, nonce = now_ms() - age_ms, rng.randbytes(16)
    return envelope.header(who.key, network, (to.node_id,), at_ms, 60_000, nonce=nonce)


def twist(kind: str, who: Actor, make: Make, rng: random.Random) -> Twist:
    """A message of this kind by somebody."""
    changes, code, words = _HEADERS.get(kind, ({}, Code.BAD_SIGNATURE, "is not by"))
    sealed = who.sign(make(header(who, rng, **changes)))
    payload, signatures = sealed.payload, sealed.signatures
    if kind == "cut payload":
        payload = payload[: rng.randrange(len(payload))]
    elif kind == "forged":
        changed, position = bytearray(payload), rng.randrange(len(payload))
        changed[position] ^= 1 << rng.randrange(8)
        payload = bytes(changed)
    elif kind == "oversized":
        # An unknown field, so that it is a valid message but for its size.
        payload += b"\xfa\x7f" + varint(CONTROL_BYTES_MAX) + bytes(CONTROL_BYTES_MAX)
        signatures = (Signature(who.id, who.key.sign(envelope.pae(sealed.payload_type, payload))),)
        most = _BYTES_MAX.get(sealed.payload_type, CONTROL_BYTES_MAX)
        code, words = Code.TOO_LARGE, f"at most {most}"
    return Twist(Envelope(sealed.payload_type, payload, signatures), code, words)


_BYTES_MAX: Final = {payload_type("NodeDescriptor"): DESCRIPTOR_BYTES_MAX}
_HEADERS: Final[dict[str, tuple[dict[str, Any], Code, str]]] = {
    "wrong audience": ({"to": party("other")}, Code.WRONG_AUDIENCE, "not addressed to"),
    "wrong network": ({"network": "another"}, Code.WRONG_NETWORK, "is for pool 'another'"),
    "expired": ({"age_ms": AGE_MS}, Code.NOT_FRESH, "expired"),
    "future": ({"age_ms": -AGE_MS}, Code.NOT_FRESH, "ahead of this clock"),
}
TWISTS: Final = ("cut payload", "forged", "oversized", *_HEADERS)


def loose(sealed: Envelope) -> Any:
    """The protobuf form of an envelope that breaks bounds of ours."""
    made = envelope_pb2.Envelope(payload_type=sealed.payload_type, payload=sealed.payload)
    for one in sealed.signatures:
        made.signatures.add(keyid=one.keyid, sig=one.sig)
    return made


def varint(value: int) -> bytes:
    """A length as protobuf writes it."""
    parts = bytearray()
    while value >= 0x80:
        parts.append(0x80 | value & 0x7F)
        value >>= 7
    return bytes([*parts, value])
