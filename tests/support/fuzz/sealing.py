"""Requests whose signatures are left blank: whoever feeds them signs what then stands in them.

A blank signature names a signer and no more. So the same bytes say the same in every pool, can be
edited below the signature, and still arrive rightly signed: what a member can send. Stand-ins are
bytes that only the moment knows, such as a challenge; they are replaced before anything is signed.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest

from novamesh_proto.envelope import pae
from novamesh_proto.identity import PrivateKey
from support.fuzz import tree
from support.fuzz.tree import (
    KEYID,
    LENGTH,
    PAYLOAD,
    PAYLOAD_TYPE,
    SIG,
    SIGNATURES,
    Field,
    Message,
    Shape,
)
from support.parties import digest

NONCE = digest("stand-in: challenge")
ASSIGNMENT = digest("stand-in: assignment")
Keys = Mapping[bytes, PrivateKey]


@contextmanager
def repeatable(label: str) -> Iterator[None]:
    """What is sealed inside is the same in every process, so that a corpus keeps its meaning."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "urandom", random.Random(label).randbytes)
        yield


def blank(data: bytes, shape: Shape) -> bytes:
    """A message without the signatures in it."""
    message = tree.parse(data, shape)
    assert message is not None, f"no {shape.name}"
    for sealed in _envelopes(message):
        for signature in _signatures(sealed):
            signature.fields = [field for field in signature.fields if field.number != SIG]
    return tree.encode(message)


def complete(data: bytes, shape: Shape, keys: Keys, stand_ins: Mapping[bytes, bytes]) -> bytes:
    """The message as it is sent: stand-ins replaced, and every blank signature made.

    Bytes that are no message of that shape are sent as they are; so are signatures in the name of
    somebody whose key is not among `keys`.
    """
    for stand_in, value in stand_ins.items():
        data = data.replace(stand_in, value)
    message = tree.parse(data, shape)
    if message is None:
        return data
    for sealed in reversed(_envelopes(message)):  # what is inside another one first
        for signature in _signatures(sealed):
            key = keys.get(tree.as_bytes(_last(signature, KEYID)))
            if key is not None and not _last(signature, SIG):
                kind = tree.as_bytes(_last(sealed, PAYLOAD_TYPE)).decode("utf-8", "replace")
                signed = pae(kind, tree.as_bytes(_last(sealed, PAYLOAD)))
                signature.fields.append(Field(SIG, LENGTH, key.sign(signed)))
    return tree.encode(message)


def _envelopes(message: Message) -> list[Message]:
    """Outer ones before what they hold."""
    below = [field.value for _, field in message.walk() if isinstance(field.value, Message)]
    return [found for found in (message, *below) if found.shape.name == tree.ENVELOPE]


def _signatures(sealed: Message) -> list[Message]:
    found = [field.value for field in sealed.fields if field.number == SIGNATURES]
    return [signature for signature in found if isinstance(signature, Message)]


def _last(message: Message, number: int) -> object:
    """The value that protobuf takes of a field that is there more than once."""
    found = [field.value for field in message.fields if field.number == number]
    return found[-1] if found else b""
