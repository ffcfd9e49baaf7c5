"""A join code is whole, or it is refused with what to do about it."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.join_code import PREFIX, TEXT_CHARS_MAX, format_join_code, parse_join_code
from novamesh_proto.messages import JoinCode
from support.parties import COORDINATOR, digest
from support.refusals import unless_refused
from support.vectors import Vector, golden

CODE = JoinCode("pool.example.org:7700", COORDINATOR.node_id, "testnet", digest("invite")[:24])
TEXT = format_join_code(CODE)
CODES = st.builds(
    JoinCode,
    address=st.lists(
        st.builds(
            "{}:{}".format,
            st.sampled_from(["127.0.0.1", "[::1]", "localhost", "pool.example.org"]),
            st.integers(1, 65_535),
        ),
        min_size=1,
        max_size=4,
    ).map(",".join),
    coordinator=st.just(COORDINATOR.node_id),
    network=st.text(min_size=1, max_size=16),
    invite=st.binary(max_size=64),
)


@golden("join_code/join_code")
def test_golden_codes(vector: Vector) -> None:
    with vector.verdict():
        code = parse_join_code(vector["text"])
    if vector.ok:
        assert code.address == vector["says"]["address"]
        assert code.network == vector["says"]["network"]
        assert code.coordinator.hex() == vector["says"]["coordinator"]
        assert code.invite.hex() == vector["says"]["invite"]
        assert format_join_code(code) == "".join(vector["text"].split()).lower()


@given(code=CODES)
def test_every_code_comes_back(code: JoinCode) -> None:
    text = format_join_code(code)
    assert parse_join_code(text) == code
    assert text.startswith(PREFIX)
    assert text.isalnum()  # a double click selects it whole
    assert len(text) <= TEXT_CHARS_MAX


@settings(max_examples=200)
@given(
    at=st.integers(0, len(TEXT)),
    cut=st.integers(0, 3),
    put=st.text("abcdefghijklmnopqrstuvwxyz0123456789=-", max_size=3),
)
def test_no_slip_of_the_hand_passes(at: int, cut: int, put: str) -> None:
    slipped = TEXT[:at] + put + TEXT[at + cut :]
    assume(slipped != TEXT)
    with pytest.raises(NovaMeshError) as caught:
        parse_join_code(slipped)
    assert caught.value.code is Code.BAD_REQUEST
    assert caught.value.hint


def test_a_slip_is_called_a_mistake() -> None:
    with pytest.raises(NovaMeshError, match="mistake"):
        parse_join_code(TEXT[:-2] + ("a" if TEXT[-2] != "a" else "b") + TEXT[-1])


@given(text=st.text(max_size=200) | st.text("nm1abcdefgh234567", max_size=200).map("nm1".__add__))
def test_any_text_is_a_code_or_refused(text: str) -> None:
    code = unless_refused(lambda: parse_join_code(text), Code.BAD_REQUEST)
    if code is not None:
        assert format_join_code(code) == "".join(text.split()).lower()


def test_a_code_that_nobody_could_use_is_not_made() -> None:
    several = ("a:1,b", "a:1,", "a:1, b:2", "a:1,b:2,c:3,d:4,e:5")
    for address in ("nowhere", "host:0", "host:99999", "a b:1", ":7700", *several):
        with pytest.raises(NovaMeshError) as caught:
            format_join_code(JoinCode(address, COORDINATOR.node_id, "testnet"))
        assert caught.value.code is Code.BAD_REQUEST
