"""The one line that lets somebody into a pool: address, coordinator's PeerId, pool, invite.

    "nm1" | base32 (RFC 4648, lower case, no padding) of: JoinCode as protobuf | 4 bytes of checksum
    checksum = first bytes of SHA-256("nm1" | JoinCode as protobuf)

Rules: case and white space do not matter, since codes are read aloud and wrapped by mail programs;
any other change is caught by the checksum. A code is a secret as long as its invite is good. What
the invite means is known to the coordinator alone.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from typing import Final

from novamesh_proto import identity, wire
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import JoinCode

PREFIX: Final = "nm1"
CHECKSUM_BYTES: Final = 4
TEXT_CHARS_MAX: Final = 1024
ADDRESSES_MAX: Final = 4  # a coordinator and those that stand by

_ADDRESS: Final = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):(?P<port>[0-9]{1,5})")
_HINT: Final = "copy the whole code again, from nm1 to its end, or ask the pool's owner for one"


def format_join_code(code: JoinCode) -> str:
    """The code as text, one line.

    Raises:
        NovaMeshError: BAD_REQUEST if an address is not HOST:PORT or the PeerId is none.
    """
    _check(code)
    data = wire.encode(code)
    return PREFIX + base64.b32encode(data + _checksum(data)).decode().rstrip("=").lower()


def parse_join_code(text: str) -> JoinCode:
    """What a code says.

    Raises:
        NovaMeshError: BAD_REQUEST if it is no join code, or not whole.
    """
    if len(text) > TEXT_CHARS_MAX:
        raise _refusal(f"a join code has at most {TEXT_CHARS_MAX} characters")
    compact = "".join(text.split()).lower()
    if not compact.startswith(PREFIX):
        raise _refusal(f"a join code begins with {PREFIX}")
    data, checksum = _decode(compact[len(PREFIX) :])
    if _checksum(data) != checksum:
        raise _refusal("this join code has a mistake in it")
    try:
        code = wire.decode(JoinCode, data)
    except NovaMeshError as error:
        raise _refusal(f"this join code says nothing: {error.message}") from None
    if format_join_code(code) != compact:
        raise _refusal("this join code is not in the form that we write")
    return code


def _decode(body: str) -> tuple[bytes, bytes]:
    try:
        raw = base64.b32decode(body.upper() + "=" * (-len(body) % 8))
    except (binascii.Error, ValueError):
        raise _refusal("this join code is cut off or has wrong characters") from None
    return raw[:-CHECKSUM_BYTES], raw[-CHECKSUM_BYTES:]


def _check(code: JoinCode) -> None:
    each = [_ADDRESS.fullmatch(address) for address in code.address.split(",")]
    if len(each) > ADDRESSES_MAX:
        raise _refusal(f"a pool has at most {ADDRESSES_MAX} addresses")
    if not all(address and 1 <= int(address["port"]) <= 65_535 for address in each):
        raise _refusal("the address of a pool is HOST:PORT, or several with commas between")
    try:
        identity.public_key_bytes(code.coordinator)
    except NovaMeshError as error:
        raise _refusal(f"the coordinator of this join code is none: {error.message}") from None


def _checksum(data: bytes) -> bytes:
    return hashlib.sha256(PREFIX.encode() + data).digest()[:CHECKSUM_BYTES]


def _refusal(problem: str) -> NovaMeshError:
    return NovaMeshError(Code.BAD_REQUEST, problem, _HINT)
