"""Damage bytes, one edit at a time: as protobuf, down into what was signed, or as plain bytes.

One way for hypothesis and for libFuzzer: the same bytes and the same seed give the same edit.
Fields are dropped, repeated, moved, swapped; numbers become extreme, lengths and wire types wrong,
payloads another message's; and now and then bits flip.
"""

from __future__ import annotations

import random
import re
import struct
from collections.abc import Callable
from typing import Final

from support.fuzz import json_edits, tree
from support.fuzz.tree import FIXED32, FIXED64, JSON, LENGTH, VARINT, Field, Message, Shape

BYTES_MAX: Final = 64 * 1024
PLAIN_SHARE: Final = 0.1  # of edits that know nothing of protobuf
EXTREMES: Final = (
    0, 1, 2, 127, 128, 255, 1_000, 4_097, 65_536, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53,
    2**63 - 1, 2**63, 2**64 - 1,
)  # fmt: skip
FLOATS: Final = (0.0, -0.0, -1.0, 1e-300, 1e308, float("inf"), float("-inf"), float("nan"))
SIZES: Final = (0, 1, 15, 16, 17, 31, 32, 33, 37, 38, 39, 63, 64, 65, 80, 255, 513, 4_097)
TIMES: Final = (1, 2, 9, 65, 300)  # how often a field is repeated
NUMBERS: Final = (1, 2, 3, 15, 16, 2047, 2**29 - 1)  # of fields

DIGITS: Final = re.compile(rb"\d+")

Place = tuple[Message, Field]
Edit = Callable[[list[Place], random.Random], None]


def edit(data: bytes, shape: Shape | None, seed: int, bytes_max: int = BYTES_MAX) -> bytes:
    """The bytes with one edit, at most `bytes_max` of them."""
    rng = random.Random(seed)
    if shape is JSON and rng.random() >= PLAIN_SHARE:
        return json_edits.edit(data, rng)[:bytes_max]
    found = None
    if shape is not None and rng.random() >= PLAIN_SHARE:
        found = tree.parse(data, shape)
    places = list(found.walk()) if found is not None else []
    if found is None or not places:
        return _damage(data, rng)[:bytes_max]
    rng.choice(_EDITS)(places, rng)
    out = tree.encode(found)
    return out if len(out) <= bytes_max else data


def _damage(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    at = rng.randint(0, len(out))
    match rng.choice(("flip", "cut", "repeat", "insert", "shorten", "anything", "number")):
        case "flip" if at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        case "cut":
            del out[at : at + rng.randint(1, 40)]
        case "repeat":
            out[at:at] = out[max(0, at - 40) : at]
        case "insert":
            out[at:at] = rng.randbytes(rng.randint(1, 20))
        case "shorten":
            del out[at:]
        case "number":  # in text
            found = list(DIGITS.finditer(data))
            if found:
                start, end = rng.choice(found).span()
                out[start:end] = b"%d" % rng.choice(EXTREMES)
        case "anything":
            out = bytearray(rng.randbytes(rng.randint(0, 300)))
    return bytes(out)


def _index(message: Message, field: Field) -> int:
    return next(at for at, other in enumerate(message.fields) if other is field)


def _drop(places: list[Place], rng: random.Random) -> None:
    message, field = rng.choice(places)
    del message.fields[_index(message, field)]


def _repeat(places: list[Place], rng: random.Random) -> None:
    message, field = rng.choice(places)
    at = _index(message, field)
    message.fields[at:at] = [field] * rng.choice(TIMES)  # written down before it is edited again


def _move(places: list[Place], rng: random.Random) -> None:
    message, field = rng.choice(places)
    del message.fields[_index(message, field)]
    message.fields.insert(rng.randint(0, len(message.fields)), field)


def _swap(places: list[Place], rng: random.Random) -> None:
    """Another field's value; half of the time one that has the same number."""
    _, field = rng.choice(places)
    alike = [other for _, other in places if other.wire == field.wire]
    same = [other for other in alike if other.number == field.number]
    other = rng.choice(same if rng.random() < 0.5 else alike)
    field.value = other.value if isinstance(other.value, int) else tree.as_bytes(other.value)


def _add(places: list[Place], rng: random.Random) -> None:
    """A field from elsewhere, under its own number or another."""
    message, field = rng.choice(places)
    _, other = rng.choice(places)
    value = other.value if isinstance(other.value, int) else tree.as_bytes(other.value)
    number = other.number if rng.random() < 0.5 else rng.randint(1, 20)
    message.fields.insert(_index(message, field), Field(number, other.wire, value))


def _size(places: list[Place], rng: random.Random) -> None:
    """Another length: of a digest, a text, a message that breaks off."""
    _, field = rng.choice([place for place in places if place[1].wire == LENGTH] or places)
    if not isinstance(field.value, int):
        data = tree.as_bytes(field.value)
        size = max(0, rng.choice((*SIZES, len(data) - 1, len(data) + 1, len(data) // 2)))
        field.value = data[:size] + rng.randbytes(max(0, size - len(data)))


def _number(places: list[Place], rng: random.Random) -> None:
    """Another number: extreme, near, or no enum's."""
    message, field = rng.choice([p for p in places if isinstance(p[1].value, int)] or places)
    if not isinstance(field.value, int):
        return
    if field.wire == VARINT:
        near = max(0, field.value + rng.choice((-1, 1)))
        enum = rng.randint(0, 9) if field.number in message.shape.enums else near
        field.value = rng.choice((*EXTREMES, near, enum, enum)) % 2**64
    elif field.wire == FIXED64:
        field.value = int.from_bytes(struct.pack("<d", rng.choice(FLOATS)), "little")


def _scramble(places: list[Place], rng: random.Random) -> None:
    """Random bytes of the same length, text among them that is none."""
    _, field = rng.choice(places)
    if isinstance(field.value, int):
        field.value = rng.getrandbits(32 if field.wire == FIXED32 else 64)
    else:
        field.value = rng.randbytes(len(tree.as_bytes(field.value)))


def _flip(places: list[Place], rng: random.Random) -> None:
    _, field = rng.choice(places)
    if isinstance(field.value, int):
        field.value ^= 1 << rng.randrange(32)
    elif data := bytearray(tree.as_bytes(field.value)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        field.value = bytes(data)


def _retype(places: list[Place], rng: random.Random) -> None:
    """Another wire type, or a field number that nobody knows."""
    _, field = rng.choice(places)
    if rng.random() < 0.5:
        field.number = rng.choice(NUMBERS)
    elif isinstance(field.value, int):
        field.wire, field.value = LENGTH, rng.randbytes(rng.choice((0, 1, 8, 32)))
    else:
        field.wire, field.value = VARINT, rng.choice(EXTREMES)


def _relabel(places: list[Place], rng: random.Random) -> None:
    """What was signed is said to be something else."""
    kinds = [
        field
        for message, field in places
        if message.shape.name == tree.ENVELOPE and field.number == tree.PAYLOAD_TYPE
    ]
    if kinds:
        rng.choice(kinds).value = rng.choice(sorted(tree.signed_kinds()))


_EDITS: Final[tuple[Edit, ...]] = (
    _drop, _repeat, _move, _swap, _swap, _add, _size, _size, _number, _number, _number, _scramble,
    _flip, _flip, _retype, _relabel,
)  # fmt: skip
