"""Invites: tokens that let somebody join, made and checked with one secret, kept nowhere.

    version 1 | expires 8 bytes, ms | uses 4 | id 8 | HMAC-SHA256 of these, first 16 bytes

The secret comes from the coordinator's key, so whoever holds the key can make invites while the
server runs or not. How often an invite was used is counted by its id, in the log.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from dataclasses import dataclass
from typing import Final

from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.identity import PrivateKey

_FORM: Final = struct.Struct("> B Q I 8s")
_VERSION: Final = 1
_MAC_BYTES: Final = 16
_LABEL: Final = b"novamesh/v1/invite\0"
_HINT: Final = "ask the pool's owner for a new join code: novamesh coordinator invite"
ID_BYTES: Final = 8
USES_MAX: Final = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Invite:
    """What an invite says: who counts its uses, until when it is good, how often."""

    id: bytes
    expires_ms: int
    uses: int


def plural(noun: str, number: float) -> str:
    """The noun, with an s unless there is one of it."""
    return noun if number == 1 else f"{noun}s"


def invite_secret(key: PrivateKey) -> bytes:
    """The secret that a coordinator's invites are made with."""
    return hmac.digest(key.to_bytes(), _LABEL, hashlib.sha256)


def write_invite(secret: bytes, invite: Invite) -> bytes:
    """The token of an invite, 37 bytes."""
    said = _FORM.pack(_VERSION, invite.expires_ms, invite.uses, invite.id)
    return said + _mac(secret, said)


def read_invite(secret: bytes, token: bytes) -> Invite:
    """What a token says, if we made it.

    Raises:
        NovaMeshError: FORBIDDEN if it is not one of ours.
    """
    said, mac = token[: _FORM.size], token[_FORM.size :]
    if len(said) != _FORM.size or not hmac.compare_digest(mac, _mac(secret, said)):
        problem = "this invite is not one of this pool" if token else "this pool needs an invite"
        raise NovaMeshError(Code.FORBIDDEN, problem, _HINT)
    version, expires_ms, uses, invite_id = _FORM.unpack(said)
    if version != _VERSION:
        raise NovaMeshError(Code.FORBIDDEN, f"invites of version {version} are not known", _HINT)
    return Invite(invite_id, expires_ms, uses)


def check_invite(invite: Invite, used: int, now_ms: int) -> None:
    """Refuse an invite that is no longer good.

    Raises:
        NovaMeshError: FORBIDDEN.
    """
    if now_ms >= invite.expires_ms:
        raise NovaMeshError(Code.FORBIDDEN, "this invite has expired", _HINT)
    if used >= invite.uses:
        good_for = f"{invite.uses} {plural('member', invite.uses)}"
        raise NovaMeshError(
            Code.FORBIDDEN, f"this invite was good for {good_for} and is used up", _HINT
        )


def _mac(secret: bytes, said: bytes) -> bytes:
    return hmac.digest(secret, said, hashlib.sha256)[:_MAC_BYTES]
