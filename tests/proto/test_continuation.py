"""Answers of several parts: what is linked verifies, and no link can be changed unseen."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from novamesh_proto.continuation import check_continuation
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.limits import PARTS_MAX, RECEIPT_BYTES_MAX
from novamesh_proto.receipt import (
    PARTS,
    Receipt,
    count_sections,
    decode_receipt,
    encode_receipt,
    verify_receipt,
)
from support.answer_vectors import FIRST, SECOND, THIRD_PART, silent, three, two
from support.evidence_vectors import render
from support.parties import CLIENT, COORDINATOR, NODE, party
from support.vectors import ROOT, Vector, golden

FILE = encode_receipt(three())
LINES = FILE.splitlines(keepends=True)


def refusal(data: bytes, **pins: bytes) -> NovaMeshError:
    with pytest.raises(NovaMeshError) as caught:
        verify_receipt(data, **pins)  # type: ignore[arg-type]
    return caught.value


def test_an_answer_of_one_part_is_written_as_ever() -> None:
    assert encode_receipt(FIRST.receipt).startswith(b"novamesh-receipt/v1\ndescriptor ")
    assert verify_receipt(encode_receipt(FIRST.receipt)).earlier == ()


def test_the_file_is_the_lines_of_each_part_in_order() -> None:
    labels = [line.split()[0].decode() for line in LINES]
    assert labels == ["novamesh-receipt/v2", *("section", *PARTS) * 3, "end"]
    assert LINES[1] == b"section 1 of 3\n"
    assert decode_receipt(FILE) == three()


def test_a_whole_answer_tells_who_gave_what() -> None:
    verified = verify_receipt(FILE, COORDINATOR.node_id, CLIENT.node_id)
    assert verified.parts[0].node == NODE.node_id
    assert [(s.start, s.signed, s.end) for s in verified.spans] == [
        (0, 64, 70), (70, 90, 90), (90, 190, 190),
    ]  # fmt: skip
    assert [span.unattested for span in verified.spans] == [6, 0, 0]
    assert verified.job == verified.parts[-1].job
    assert verified.completion_tokens == 100
    assert len(verified.signatures) == len(PARTS)


def test_pins_hold_for_every_part() -> None:
    assert refusal(FILE, coordinator=party("x").node_id).code is Code.PIN_MISMATCH
    error = refusal(FILE, client=party("x").node_id)
    assert error.code is Code.FORBIDDEN
    assert error.message.startswith("receipt section 1, part terms: ")


@pytest.mark.parametrize("step", [1, 7])
def test_every_changed_byte_is_refused(step: int) -> None:
    for offset in range(step, len(FILE), 211):
        data = bytearray(FILE)
        data[offset] ^= 1 << offset % 8
        assert refusal(bytes(data)).message.startswith("receipt "), offset


@given(st.integers(0, len(FILE) - 1), st.integers(1, 255))
def test_any_change_of_a_byte_is_refused(offset: int, mask: int) -> None:
    data = bytearray(FILE)
    data[offset] ^= mask
    assert refusal(bytes(data)).message.startswith("receipt ")


@given(st.data())
def test_lines_of_other_files_do_not_fit_in(data: st.DataObject) -> None:
    """Lines of true receipts, put together otherwise, with a checksum that fits."""
    others = [line for one in (two(), three(), SECOND.receipt) for line in _lines(one)]
    at = data.draw(st.integers(1, len(LINES) - 2))
    lines = [*LINES[:at], data.draw(st.sampled_from(others)), *LINES[at + 1 : -1]]
    body = b"".join(lines)
    if lines != LINES[:-1]:
        with pytest.raises(NovaMeshError):
            _require_other(body + b"end " + hashlib.sha256(body).hexdigest().encode() + b"\n")


def _require_other(data: bytes) -> None:
    """Fails unless a line was left out that need not be there: that is another true receipt."""
    verified = verify_receipt(data)
    left_out = sum(line.endswith(b" -\n") for line in data.splitlines(keepends=True))
    assert left_out > FILE.count(b" -\n"), verified
    raise NovaMeshError(Code.CORRUPT, "a part that need not be there is not there")


def _lines(receipt: Receipt) -> list[bytes]:
    return encode_receipt(receipt).splitlines(keepends=True)[1:-1]


@given(st.integers(0, len(FILE) - 1))
def test_a_file_that_is_cut_off_is_refused(length: int) -> None:
    assert refusal(FILE[:length]).message.startswith("receipt ")


def test_parts_are_bounded() -> None:
    many = replace(FIRST.receipt, earlier=(silent(FIRST),) * PARTS_MAX)
    with pytest.raises(NovaMeshError) as caught:
        encode_receipt(many)
    assert caught.value.code is Code.TOO_LARGE
    large = b"novamesh-receipt/v2\n" + bytes(PARTS_MAX * RECEIPT_BYTES_MAX)
    assert refusal(large).code is Code.TOO_LARGE


@pytest.mark.parametrize(
    ("head", "count"),
    [
        (encode_receipt(FIRST.receipt)[:64], 1),
        (encode_receipt(two())[:64], 2),
        (FILE[:64], 3),
        (b"novamesh-receipt/v2\nsection 1 of 99\n", 0),
        (b"novamesh-receipt/v2", 0),
        (b"", 0),
    ],
)
def test_sections_are_counted_by_the_beginning(head: bytes, count: int) -> None:
    assert count_sections(head) == count


def test_a_later_part_alone_verifies_as_one() -> None:
    verified = verify_receipt(encode_receipt(SECOND.receipt))
    assert [(s.start, s.signed, s.end) for s in verified.spans] == [(70, 170, 170)]


def test_a_part_goes_on_from_the_very_one_before() -> None:
    first = verify_receipt(encode_receipt(FIRST.receipt))
    third = verify_receipt(encode_receipt(THIRD_PART.receipt))
    with pytest.raises(NovaMeshError, match="do not go on from the job"):
        check_continuation((first,), third)


@golden("receipt/answer")
def test_golden_answers(vector: Vector) -> None:
    data = "\n".join(vector["lines"]).encode() + b"\n"
    with vector.verdict():
        verified = verify_receipt(data, COORDINATOR.node_id, None)
        spans = [[span.start, span.signed, span.end] for span in verified.spans]
        assert spans == vector["spans"]
    if not vector.ok:
        where = f"section {vector['section']}, " * bool(vector["section"])
        assert refusal(data).message.startswith(f"receipt {where}part {vector['part']}: ")


def test_golden_answers_are_made_the_same_again() -> None:
    assert (ROOT / "receipt/answer.json").read_text() == render("receipt/answer")
