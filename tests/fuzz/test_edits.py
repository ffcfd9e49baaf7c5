"""The edits are what they say: bytes survive being parsed, signatures can be left out and made."""

from __future__ import annotations

import random

import pytest

from novamesh_proto import wire
from novamesh_proto.messages import Envelope
from novamesh_proto.v1 import coordinator_pb2, envelope_pb2
from support.fuzz import tree
from support.fuzz.edits import edit
from support.fuzz.sealing import blank, complete
from support.fuzz.targets import targets
from support.parties import CLIENT, NODE
from support.story import tell

SHAPED = {
    name: target
    for name, target in targets().items()
    if target.shape is not None and target.shape is not tree.JSON
}
KEYS = {key.node_id: key for key in (CLIENT, NODE)}


@pytest.mark.parametrize("name", SHAPED)
def test_what_is_parsed_is_written_as_it_was(name: str) -> None:
    target = SHAPED[name]
    assert target.shape is not None
    for sample in target.samples:
        found = tree.parse(sample, target.shape)
        assert found is not None
        assert tree.encode(found) == sample


@pytest.mark.parametrize("data", [b"\x0a", b"\x0a\x05abc", b"\x00", b"\x80" * 11, b"\x88\x00\x01"])
def test_what_is_no_message_stays_bytes(data: bytes) -> None:
    assert tree.parse(data, tree.shape_of(envelope_pb2.Envelope.DESCRIPTOR)) is None


def test_what_is_signed_can_be_edited() -> None:
    shape = tree.shape_of(coordinator_pb2.CancelRequest.DESCRIPTOR)
    (sample, *_) = targets()["cancel"].samples
    found = tree.parse(sample, shape)
    assert found is not None
    shapes = [inside.shape.name.rpartition(".")[2] for inside, _ in found.walk()]
    assert {"Envelope", "CancelOrder", "Header", "Signature"} <= set(shapes)


def test_a_blank_signature_is_made_again() -> None:
    """Also inside what is signed, as in a hello; whose key is not known stays blank."""
    shape = tree.shape_of(envelope_pb2.Envelope.DESCRIPTOR)
    signed = wire.encode(tell().terms.envelope)
    blanked = blank(signed, shape)
    assert blanked != signed
    assert complete(blanked, shape, KEYS, {}) == signed
    assert complete(blanked, shape, {}, {}) == blanked
    assert wire.decode(Envelope, complete(blanked, shape, KEYS, {})) == tell().terms.envelope


def test_a_stand_in_is_replaced_before_anything_is_signed() -> None:
    shape = tree.shape_of(envelope_pb2.Envelope.DESCRIPTOR)
    blanked = blank(wire.encode(tell().terms.envelope), shape)
    stand_in = b"testnet"
    changed = complete(blanked, shape, KEYS, {stand_in: b"another"})
    assert stand_in not in changed
    assert changed != complete(blanked, shape, KEYS, {})


@pytest.mark.parametrize("name", targets())
def test_the_same_seed_is_the_same_edit(name: str) -> None:
    target, rng = targets()[name], random.Random(1)
    changed = 0
    for sample in target.samples:
        for _ in range(20):
            seed = rng.getrandbits(32)
            once = edit(sample, target.shape, seed)
            assert once == edit(sample, target.shape, seed)
            changed += once != sample
    assert changed > 3
