"""Lengths hide in buckets, and padding has one form only."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.padding import TAG_BYTES, pad, unpad
from support.refusals import unless_refused

ENDS = st.integers(0, 16).map(lambda zeros: b"\x80" + bytes(zeros))
BLOCKS = st.sampled_from([16, 256])


@given(data=st.binary(max_size=600), block=BLOCKS)
def test_padding_comes_off_again(data: bytes, block: int) -> None:
    padded = pad(data, block, sealed_max=10_000)
    assert unpad(padded, block) == data
    assert (len(padded) + TAG_BYTES) % block == 0
    assert 1 <= len(padded) - len(data) <= block


@given(
    padded=st.binary(max_size=70) | st.binary(max_size=32).map(lambda b: b + b"\x80" + bytes(15))
)
def test_only_what_pad_makes_comes_off(padded: bytes) -> None:
    data = unless_refused(lambda: unpad(padded, 16), Code.BAD_REQUEST)
    if data is not None:
        assert pad(data, 16, sealed_max=10_000) == padded


@pytest.mark.parametrize(
    "padded",
    [
        b"",
        bytes(16),
        b"x" * 16,
        b"x" * 15 + b"\x80" + bytes(16),
        b"x" * 8 + b"\x80" + bytes(6) + b"\1",
        b"x" * 8 + b"\x80" + bytes(8),
    ],
    ids=["nothing", "no mark", "no padding", "a block too long", "not zero", "no whole block"],
)
def test_broken_padding_is_refused(padded: bytes) -> None:
    with pytest.raises(NovaMeshError) as caught:
        unpad(padded, 16)
    assert caught.value.code is Code.BAD_REQUEST


def test_the_limit_counts_the_tag() -> None:
    assert len(pad(bytes(15), 16, sealed_max=32)) == 16
    with pytest.raises(NovaMeshError) as caught:
        pad(bytes(16), 16, sealed_max=32)
    assert caught.value.code is Code.TOO_LARGE
