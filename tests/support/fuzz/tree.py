"""Protobuf bytes as a tree that can be edited anywhere, valid or not, and written down again.

A `Shape` says which fields hold messages; the payload of an envelope is opened by its payload type,
so that what somebody signed can be edited like anything else. What does not parse stays bytes.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from novamesh_proto.names import payload_type
from novamesh_proto.v1 import (
    attestation_pb2,
    coordinator_pb2,
    envelope_pb2,
    job_pb2,
    ledger_pb2,
    node_pb2,
)

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
DEPTH_MAX: Final = 16
FRAMES_MAX: Final = 400
ENVELOPE: Final = "novamesh.v1.Envelope"
PAYLOAD_TYPE, PAYLOAD, SIGNATURES = 1, 2, 3  # fields of an envelope
KEYID, SIG = 1, 2  # fields of a signature
_MODULES: Final = (
    attestation_pb2, coordinator_pb2, envelope_pb2, job_pb2, ledger_pb2, node_pb2,
)  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """What the fields of a message hold: `nested` by number, and which are enums."""

    name: str
    nested: Mapping[int, Descriptor]
    enums: frozenset[int] = frozenset()

    def inside(self, number: int) -> Shape | None:
        """The shape of a field that is a message."""
        found = self.nested.get(number)
        return None if found is None else shape_of(found)


JSON: Final = Shape("JSON text", {})
"""Of bytes that are no protobuf, but JSON."""


@dataclass
class Field:
    """One field as it stands in the bytes; `value` is a number, bytes, or a message."""

    number: int
    wire: int
    value: int | bytes | Message


@dataclass
class Message:
    """Fields in the order they come."""

    shape: Shape
    fields: list[Field]

    def first(self, number: int) -> Any:
        """The value of the first such field; None if there is none."""
        return next((field.value for field in self.fields if field.number == number), None)

    def walk(self) -> Iterator[tuple[Message, Field]]:
        """Every field below, with the message it stands in."""
        for field in self.fields:
            yield self, field
            if isinstance(field.value, Message):
                yield from field.value.walk()


def frames(name: str, **kinds: Any) -> Shape:
    """Several messages one after the other: field n is one of the n-th of `kinds`."""
    numbered = enumerate(kinds.values(), start=1)
    return Shape(name, {number: kind.DESCRIPTOR for number, kind in numbered})


def join(shape: Shape, parts: Iterable[tuple[int, bytes]]) -> bytes:
    """Messages with the numbers of their kinds, as one stream."""
    return encode(Message(shape, [Field(number, LENGTH, data) for number, data in parts]))


def split(data: bytes, shape: Shape) -> list[tuple[int, bytes]]:
    """The messages of a stream, at most FRAMES_MAX of them; none where the bytes are no stream."""
    stream = parse(data, Shape(shape.name, {}))
    fields = stream.fields[:FRAMES_MAX] if stream is not None else []
    return [(f.number, as_bytes(f.value)) for f in fields if f.wire == LENGTH]


@functools.cache
def shape_of(descriptor: Descriptor) -> Shape:
    """The shape of a protobuf message. Bounded: one a message class."""
    fields: list[FieldDescriptor] = list(descriptor.fields)
    return Shape(
        descriptor.full_name,
        {field.number: field.message_type for field in fields if field.message_type is not None},
        frozenset(field.number for field in fields if field.enum_type is not None),
    )


@functools.cache
def signed_kinds() -> dict[bytes, Shape]:
    """What an envelope may hold, by payload type."""
    found: dict[bytes, Shape] = {}
    for module in _MODULES:
        for descriptor in module.DESCRIPTOR.message_types_by_name.values():
            if "header" in descriptor.fields_by_name:
                found[payload_type(descriptor.name).encode()] = shape_of(descriptor)
    return found


def parse(data: bytes, shape: Shape, depth: int = 0) -> Message | None:
    """The tree of some bytes; None where they are no message, or would be written otherwise."""
    fields: list[Field] = []
    at = 0
    while at < len(data):
        read = _read_field(data, at)
        if read is None:
            return None
        field, at = read
        inside = shape.inside(field.number)
        if inside is not None and isinstance(field.value, bytes) and depth < DEPTH_MAX:
            field.value = parse(field.value, inside, depth + 1) or field.value
        fields.append(field)
    message = Message(shape, fields)
    if shape.name == ENVELOPE:
        _open_payload(message, depth)
    return message


def _open_payload(sealed: Message, depth: int) -> None:
    kind = signed_kinds().get(sealed.first(PAYLOAD_TYPE))
    for field in sealed.fields:
        if kind is not None and field.number == PAYLOAD and isinstance(field.value, bytes):
            field.value = parse(field.value, kind, depth + 1) or field.value


def encode(message: Message) -> bytes:
    """The bytes of a tree."""
    out = bytearray()
    for field in message.fields:
        out += _varint(field.number << 3 | field.wire)
        value = field.value
        if isinstance(value, int):
            size = {FIXED64: 8, FIXED32: 4}.get(field.wire)
            out += _varint(value) if size is None else value.to_bytes(size, "little")
            continue
        data = encode(value) if isinstance(value, Message) else value
        out += _varint(len(data)) + data
    return bytes(out)


def as_bytes(value: Any) -> bytes:
    """A field's value as it is written; none of a number."""
    if isinstance(value, Message):
        return encode(value)
    return value if isinstance(value, bytes) else b""


def _read_field(data: bytes, at: int) -> tuple[Field, int] | None:
    tag, at = _read_varint(data, at)
    number, wire = tag >> 3, tag & 7
    if at < 0 or not 0 < number < 1 << 29:
        return None
    if wire == VARINT:
        value, at = _read_varint(data, at)
        return None if at < 0 else (Field(number, wire, value), at)
    if wire in (FIXED64, FIXED32):
        end = at + (8 if wire == FIXED64 else 4)
        value = int.from_bytes(data[at:end], "little")
        return None if end > len(data) else (Field(number, wire, value), end)
    if wire != LENGTH:
        return None
    size, at = _read_varint(data, at)
    if at < 0 or size > len(data) - at:
        return None
    return Field(number, wire, data[at : at + size]), at + size


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """A number and where it ends; -1 where it does not, or could be written shorter."""
    value = 0
    for place in range(10):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            shortest = (byte or not place) and value < 1 << 64
            return (value, at) if shortest else (0, -1)
    return 0, -1


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
