"""Who somebody is: one Ed25519 key, named by its libp2p PeerId.

A NodeId is the PeerId as 38 bytes, an identity multihash over the libp2p PublicKey message:

    00 24 | 08 01 12 20 | 32 bytes of Ed25519 public key        text: base58btc, "12D3KooW…"

Rules: a NodeId carries its key, so nothing is looked up; a public key is taken only if it is
canonical (y < p) and outside the small subgroup, because with such a key one signature fits many
messages; text is taken only in the one form that we would write. Ed25519 itself is libsodium's,
which is strict and fast (docs/adr/0005). This module keeps no files: where a key lives is the
business of whoever owns it.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass, field
from typing import Final

from nacl import bindings
from nacl.exceptions import BadSignatureError

from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import NodeId

KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
NODE_ID_PREFIX: Final = bytes.fromhex("002408011220")
NODE_ID_BYTES: Final = len(NODE_ID_PREFIX) + KEY_BYTES
NODE_ID_TEXT_CHARS: Final = 52  # every Ed25519 PeerId has the same length as text

_KEYS_CACHED: Final = 4096
_BASE58: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_BASE58_VALUES: Final = {char: value for value, char in enumerate(_BASE58)}
_HINT: Final = "a PeerId is 52 characters and begins with 12D3KooW; copy it whole"

_P: Final = 2**255 - 19
_SIGN_BIT: Final = 1 << 255
# y of all points of order 1, 2, 4 and 8; both signs of x are meant.
_SMALL_ORDER_Y: Final = frozenset(
    {
        0,
        1,
        _P - 1,
        int.from_bytes(
            bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"),
            "little",
        ),
        int.from_bytes(
            bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"),
            "little",
        ),
    }
)


@dataclass(frozen=True, slots=True, eq=False)
class PrivateKey:
    """The key of one party; never printed."""

    node_id: NodeId
    _secret: bytes = field(repr=False)  # seed, then public key: libsodium's form

    @staticmethod
    def generate() -> PrivateKey:
        """A new key from the system's randomness."""
        return PrivateKey.from_bytes(os.urandom(KEY_BYTES))

    @staticmethod
    def from_bytes(seed: bytes) -> PrivateKey:
        """The key of a 32-byte RFC 8032 seed.

        Raises:
            NovaMeshError: BAD_KEY if the seed has another length.
        """
        if len(seed) != KEY_BYTES:
            raise NovaMeshError(
                Code.BAD_KEY,
                f"a private key has {KEY_BYTES} bytes, this has {len(seed)}",
                "restore the key file from your copy, or make a new key",
            )
        public_key, secret = bindings.crypto_sign_seed_keypair(seed)
        return PrivateKey(node_id_of(public_key), secret)

    def to_bytes(self) -> bytes:
        """The 32-byte seed, for the key file."""
        return self._secret[:KEY_BYTES]

    def sign(self, data: bytes) -> bytes:
        """The 64-byte Ed25519 signature over the data as it is."""
        return bindings.crypto_sign(data, self._secret)[:SIGNATURE_BYTES]


def node_id_of(public_key: bytes) -> NodeId:
    """The NodeId of a 32-byte public key.

    Raises:
        NovaMeshError: BAD_KEY if the key is none that we take.
    """
    check_public_key(public_key)
    return NodeId(NODE_ID_PREFIX + public_key)


def public_key_bytes(node_id: NodeId) -> bytes:
    """The 32-byte public key inside a NodeId.

    Raises:
        NovaMeshError: BAD_KEY if this is no Ed25519 PeerId or its key is none that we take.
    """
    if len(node_id) != NODE_ID_BYTES or not node_id.startswith(NODE_ID_PREFIX):
        raise NovaMeshError(Code.BAD_KEY, "this is not the PeerId of an Ed25519 key", _HINT)
    public_key = node_id[len(NODE_ID_PREFIX) :]
    check_public_key(public_key)
    return public_key


def check_public_key(public_key: bytes) -> None:
    """Refuse a key that is not 32 bytes, not canonical, or of small order.

    Raises:
        NovaMeshError: BAD_KEY.
    """
    if len(public_key) != KEY_BYTES:
        problem = f"has {len(public_key)} bytes instead of {KEY_BYTES}"
    else:
        y = int.from_bytes(public_key, "little") & (_SIGN_BIT - 1)
        if y >= _P:
            problem = "is not in canonical form"
        elif y in _SMALL_ORDER_Y:
            problem = "is of small order"
        else:
            return
    raise NovaMeshError(Code.BAD_KEY, f"this public key {problem}", "its owner must make a new key")


def verify(node_id: NodeId, signature: bytes, data: bytes) -> None:
    """Return if `signature` is the party's Ed25519 signature over the data, else raise.

    Raises:
        NovaMeshError: BAD_KEY for a NodeId that we do not take, BAD_SIGNATURE otherwise.
    """
    public_key = _cached_key(node_id)
    if len(signature) == SIGNATURE_BYTES:
        try:
            bindings.crypto_sign_open(signature + data, public_key)
        except BadSignatureError:
            pass
        else:
            return
    raise NovaMeshError(Code.BAD_SIGNATURE, f"this signature is not by {short(node_id)}")


@functools.lru_cache(maxsize=_KEYS_CACHED)
def _cached_key(node_id: NodeId) -> bytes:
    """Checked once a party; a refusal is not kept."""
    return public_key_bytes(node_id)


@functools.lru_cache(maxsize=_KEYS_CACHED)
def format_node_id(node_id: NodeId) -> str:
    """The PeerId as people read it, base58btc: "12D3KooW…".

    Raises:
        NovaMeshError: BAD_KEY as for `public_key_bytes`.
    """
    public_key_bytes(node_id)
    number = int.from_bytes(node_id, "big")
    chars: list[str] = []
    while number:
        number, digit = divmod(number, 58)
        chars.append(_BASE58[digit])
    return "1" + "".join(reversed(chars))  # the one leading zero byte of every NodeId


def parse_node_id(text: str) -> NodeId:
    """The NodeId of its base58btc text, spaces around it forgiven.

    Raises:
        NovaMeshError: BAD_KEY if this is not the text of a PeerId that we take.
    """
    text = text.strip()
    number = 0
    # The length is looked at first: nobody may make us convert a novel.
    if len(text) == NODE_ID_TEXT_CHARS and all(char in _BASE58_VALUES for char in text):
        for char in text:
            number = number * 58 + _BASE58_VALUES[char]
    if number.bit_length() > 8 * NODE_ID_BYTES:
        number = 0
    node_id = NodeId(number.to_bytes(NODE_ID_BYTES, "big"))
    public_key_bytes(node_id)  # so many digits spell each PeerId in one way only
    return node_id


def short(node_id: NodeId) -> str:
    """A PeerId for screens: "12D3Koo…" and its last four characters."""
    text = format_node_id(node_id)
    return f"{text[:7]}…{text[-4:]}"
