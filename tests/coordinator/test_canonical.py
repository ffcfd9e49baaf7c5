"""Canonical bytes: the same value gives the same bytes, and they read back."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st

from novamesh_coordinator import canonical
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import Envelope, NodeId, Signature


class Colour(IntEnum):
    RED = 1
    BLUE = 2


@dataclass(frozen=True, slots=True)
class Inner:
    data: bytes
    colour: Colour


@dataclass(frozen=True, slots=True)
class Outer:
    node: NodeId
    text: str
    number: int
    share: float
    yes: bool
    inner: Inner | None
    many: tuple[Inner, ...]
    pairs: tuple[tuple[bytes, int], ...]
    envelope: Envelope | None = None


inners = st.builds(Inner, st.binary(max_size=8), st.sampled_from(Colour))
outers = st.builds(
    Outer,
    st.binary(max_size=8),
    st.text(max_size=8),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
    st.none() | inners,
    st.lists(inners, max_size=3).map(tuple),
    st.lists(st.tuples(st.binary(max_size=3), st.integers()), max_size=3).map(tuple),
    st.none()
    | st.builds(
        Envelope,
        st.text(max_size=4),
        st.binary(max_size=4),
        st.just((Signature(bytes(38), bytes(64)),)),
    ),
)


@given(outers)
def test_what_is_written_reads_back(value: Outer) -> None:
    data = canonical.encode(value)
    assert canonical.decode(Outer, data) == value
    assert canonical.encode(canonical.decode(Outer, data)) == data


def test_fields_are_written_in_the_order_they_are_declared() -> None:
    assert canonical.encode(Inner(b"\x00", Colour.BLUE)) == b'{"data":"AA==","colour":2}'


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b'{"data":"AA==","colour":9}',
        b'{"data":"A","colour":1}',
        b'{"data":"AA==","colour":1,"more":1}',
        b'{"data":null,"colour":1}',
        b"{",
        b"\xff",
    ],
)
def test_anything_else_is_corrupt(data: bytes) -> None:
    with pytest.raises(NovaMeshError) as refused:
        canonical.decode(Inner, data)
    assert refused.value.code is Code.CORRUPT


def test_an_absent_field_takes_its_default() -> None:
    short = canonical.encode(Outer(NodeId(b""), "", 0, 0.0, False, None, (), ()))
    older = short.replace(b',"envelope":null', b"")
    assert canonical.decode(Outer, older).envelope is None


def test_what_has_no_form_is_a_bug() -> None:
    @dataclass(frozen=True)
    class Odd:
        things: list[int]

    with pytest.raises(TypeError):
        canonical.encode(Odd([]))


def test_what_a_type_is_annotated_with_is_not_written() -> None:
    @dataclass(frozen=True)
    class Bounded:
        text: Annotated[str, "at most 8"]

    data = canonical.encode(Bounded("x"))
    assert data == b'{"text":"x"}'
    assert canonical.decode(Bounded, data) == Bounded("x")


def test_a_tuple_of_another_length_is_corrupt() -> None:
    short = canonical.encode(Outer(NodeId(b""), "", 0, 0.0, False, None, (), ((b"", 1),)))
    assert b'[["",1]]' in short
    with pytest.raises(NovaMeshError) as refused:
        canonical.decode(Outer, short.replace(b'[["",1]]', b'[["",1,2]]'))
    assert refused.value.code is Code.CORRUPT
