"""Keys, signatures and PeerIds, against published vectors and against forgers."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from novamesh_proto import identity
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.identity import NODE_ID_PREFIX, PrivateKey
from novamesh_proto.messages import NodeId
from support.parties import CLIENT, NODE
from support.refusals import refused, unless_refused
from support.vectors import Vector, golden, load

NEUTRAL = bytes([1]) + bytes(31)
SEEDS = st.binary(min_size=32, max_size=32)


@golden("identity/rfc8032")
def test_rfc8032(vector: Vector) -> None:
    node_id = NodeId(NODE_ID_PREFIX + vector.data("public"))
    if vector.ok:
        key = PrivateKey.from_bytes(vector.data("seed"))
        assert key.node_id == node_id
        assert key.sign(vector.data("message")) == vector.data("signature")
    with vector.verdict():
        identity.verify(node_id, vector.data("signature"), vector.data("message"))


@golden("identity/keys")
def test_public_keys(vector: Vector) -> None:
    with vector.verdict():
        identity.check_public_key(vector.data("public"))
    with vector.verdict():
        identity.node_id_of(vector.data("public"))


@golden("identity/peer_id")
def test_peer_ids(vector: Vector) -> None:
    with vector.verdict():
        node_id = identity.parse_node_id(vector["text"])
    if vector.ok:
        assert identity.public_key_bytes(node_id) == vector.data("public")
        assert identity.format_node_id(node_id) == vector["text"].strip()
    if "seed" in vector.fields:
        assert PrivateKey.from_bytes(vector.data("seed")).node_id == node_id


def small_order_keys() -> list[bytes]:
    return [v.data("public") for v in load("identity/keys") if v.name.startswith("order")]


def test_openssl_would_take_one_signature_for_every_message() -> None:
    """Why keys of small order are refused before anything is verified."""
    forged = NEUTRAL + bytes(32)
    for message in (b"pay me", b"pay me twice"):
        Ed25519PublicKey.from_public_bytes(NEUTRAL).verify(forged, message)
        with pytest.raises(NovaMeshError) as caught:
            identity.verify(NodeId(NODE_ID_PREFIX + NEUTRAL), forged, message)
        assert caught.value.code is Code.BAD_KEY


@pytest.mark.parametrize("public_key", small_order_keys(), ids=bytes.hex)
def test_no_signature_fits_a_key_of_small_order(public_key: bytes) -> None:
    for r in small_order_keys():
        with pytest.raises(NovaMeshError) as caught:
            identity.verify(NodeId(NODE_ID_PREFIX + public_key), r + bytes(32), b"anything")
        assert caught.value.code is Code.BAD_KEY


@settings(max_examples=50, deadline=None)
@given(seed=SEEDS, message=st.binary(max_size=200))
def test_what_is_signed_verifies_and_openssl_agrees(seed: bytes, message: bytes) -> None:
    key = PrivateKey.from_bytes(seed)
    signature = key.sign(message)
    identity.verify(key.node_id, signature, message)
    public_key = identity.public_key_bytes(key.node_id)
    Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)


@settings(max_examples=100, deadline=None)
@given(position=st.integers(0, 63), bit=st.integers(0, 7))
def test_no_bit_of_a_signature_may_differ(position: int, bit: int) -> None:
    signature = bytearray(CLIENT.sign(b"message"))
    signature[position] ^= 1 << bit
    with pytest.raises(NovaMeshError) as caught:
        identity.verify(CLIENT.node_id, bytes(signature), b"message")
    assert caught.value.code is Code.BAD_SIGNATURE


@given(seed=SEEDS)
def test_a_peer_id_survives_its_text(seed: bytes) -> None:
    node_id = PrivateKey.from_bytes(seed).node_id
    text = identity.format_node_id(node_id)
    assert identity.parse_node_id(text) == node_id
    assert len(text) == identity.NODE_ID_TEXT_CHARS
    assert text.startswith("12D3KooW")


@given(text=st.text(max_size=80) | st.text("123ABCxyzDKooW", min_size=50, max_size=54))
def test_a_text_is_the_one_form_of_a_peer_id_or_refused(text: str) -> None:
    node_id = unless_refused(lambda: identity.parse_node_id(text), Code.BAD_KEY)
    if node_id is not None:
        assert identity.format_node_id(node_id) == text.strip()


@given(
    data=st.binary(max_size=60) | st.binary(min_size=32, max_size=32).map(NODE_ID_PREFIX.__add__)
)
def test_any_bytes_are_a_peer_id_or_refused(data: bytes) -> None:
    text = unless_refused(lambda: identity.format_node_id(NodeId(data)), Code.BAD_KEY)
    if text is not None:
        assert identity.parse_node_id(text) == data


def test_a_key_survives_its_bytes_and_stays_out_of_sight() -> None:
    key = PrivateKey.generate()
    again = PrivateKey.from_bytes(key.to_bytes())
    assert again.node_id == key.node_id
    assert again.sign(b"x") == key.sign(b"x")
    assert key.to_bytes().hex() not in repr(key)
    assert str(key.to_bytes()) not in repr(key)


def test_two_generated_keys_differ() -> None:
    assert PrivateKey.generate().node_id != PrivateKey.generate().node_id


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_a_seed_has_32_bytes(size: int) -> None:
    with pytest.raises(NovaMeshError) as caught:
        PrivateKey.from_bytes(bytes(size))
    assert caught.value.code is Code.BAD_KEY
    assert caught.value.hint


def test_a_short_id_keeps_both_ends() -> None:
    text = identity.format_node_id(NODE.node_id)
    assert identity.short(NODE.node_id) == f"12D3Koo…{text[-4:]}"


NO_PEER_ID = (
    Code.BAD_KEY,
    "this is not the PeerId of an Ed25519 key",
    "a PeerId is 52 characters and begins with 12D3KooW; copy it whole",
)


@pytest.mark.parametrize(
    "text", ["", "z" * identity.NODE_ID_TEXT_CHARS, "1" * identity.NODE_ID_TEXT_CHARS, "0OIl"]
)
def test_what_is_no_peer_id_says_what_one_looks_like(text: str) -> None:
    with refused(*NO_PEER_ID):
        identity.parse_node_id(text)
    for data in (b"", NODE.node_id[:-1], NODE.node_id + b"x", bytes(38)):
        with refused(*NO_PEER_ID):
            identity.public_key_bytes(NodeId(data))


@pytest.mark.parametrize(
    ("public_key", "problem"),
    [
        (bytes(31), "has 31 bytes instead of 32"),
        (bytes(33), "has 33 bytes instead of 32"),
        (b"\xff" * 32, "is not in canonical form"),
        ((2**255 - 19).to_bytes(32, "little"), "is not in canonical form"),
        (NEUTRAL, "is of small order"),
    ],
)
def test_a_key_that_is_not_taken_says_why(public_key: bytes, problem: str) -> None:
    with refused(Code.BAD_KEY, f"this public key {problem}", "its owner must make a new key"):
        identity.node_id_of(public_key)


def test_a_seed_of_another_size_and_a_foreign_signature_are_told() -> None:
    with refused(
        Code.BAD_KEY,
        "a private key has 32 bytes, this has 31",
        "restore the key file from your copy, or make a new key",
    ):
        PrivateKey.from_bytes(bytes(31))
    for signature in (b"", bytes(64), CLIENT.sign(b"x") + b"x", NODE.sign(b"x")):
        with refused(
            Code.BAD_SIGNATURE, f"this signature is not by {identity.short(CLIENT.node_id)}"
        ):
            identity.verify(CLIENT.node_id, signature, b"x")
