"""The receipt file: what is written is read, and no byte of it can change unseen."""

from __future__ import annotations

import base64
import bisect
import hashlib
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from novamesh_proto import wire
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.limits import RECEIPT_BYTES_MAX
from novamesh_proto.messages import Envelope, Signature
from novamesh_proto.receipt import (
    PARTS,
    Receipt,
    decode_receipt,
    encode_receipt,
    verify_receipt,
)
from support.evidence_vectors import render
from support.parties import CLIENT, COORDINATOR, party
from support.story import tell
from support.vectors import ROOT, Vector, golden

STORY = tell()
FILE = encode_receipt(STORY.receipt)
LINES = FILE.splitlines(keepends=True)
NAMES = ("format", *PARTS, "end")
ENDS = list(accumulate(len(line) for line in LINES))


def part_at(offset: int) -> str:
    """The part whose line holds a byte of the file."""
    return NAMES[bisect.bisect_right(ENDS, offset)]


def refusal(data: bytes) -> NovaMeshError:
    with pytest.raises(NovaMeshError) as caught:
        verify_receipt(data)
    return caught.value


def forge(part: str, change: Callable[[bytes], bytes]) -> bytes:
    """The file with another text for one part and a checksum that fits."""
    label = part.encode() + b" "
    lines = [
        label + change(line[len(label) : -1]) + b"\n" if line.startswith(label) else line
        for line in LINES[:-1]
    ]
    return sum_up(b"".join(lines))


def sum_up(data: bytes) -> bytes:
    return data + b"end " + hashlib.sha256(data).hexdigest().encode() + b"\n"


def repack(change: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """A change of an envelope's bytes as a change of its text."""

    def changed(text: bytes) -> bytes:
        data = base64.urlsafe_b64decode(text + b"=" * (-len(text) % 4))
        return base64.urlsafe_b64encode(change(data)).rstrip(b"=")

    return changed


def test_what_is_written_is_read() -> None:
    assert decode_receipt(FILE) == STORY.receipt


def test_the_file_is_text_with_a_line_a_part() -> None:
    assert FILE.isascii()
    assert [line.split()[0].decode() for line in LINES] == ["novamesh-receipt/v1", *PARTS, "end"]


def test_a_whole_receipt_tells_who_what_and_how_fast() -> None:
    verified = verify_receipt(FILE, COORDINATOR.node_id, CLIENT.node_id)
    assert verified.job == STORY.terms.id
    assert (verified.ttft_us, verified.tokens_per_s) == (380_000, 50.0)
    assert (verified.prompt_tokens, verified.completion_tokens) == (120, 100)
    assert verified.findings == ()
    assert [part for part, _ in verified.signatures] == list(PARTS)


def test_every_changed_byte_is_refused_and_its_part_named() -> None:
    for offset in range(len(FILE)):
        data = bytearray(FILE)
        data[offset] ^= 1 << offset % 8
        assert f"receipt part {part_at(offset)}: " in refusal(bytes(data)).message, offset


@given(st.integers(0, len(FILE) - 1), st.integers(1, 255))
def test_any_change_of_a_byte_is_refused_and_its_part_named(offset: int, mask: int) -> None:
    data = bytearray(FILE)
    data[offset] ^= mask
    assert f"receipt part {part_at(offset)}: " in refusal(bytes(data)).message


@given(st.integers(0, len(FILE) - 1))
def test_a_file_that_is_cut_off_is_refused(length: int) -> None:
    assert "receipt part " in refusal(FILE[:length]).message


def test_nothing_may_follow_the_end() -> None:
    assert "receipt part end: " in refusal(FILE + b"\n").message


def test_another_line_ending_is_refused() -> None:
    assert "receipt part format: " in refusal(FILE.replace(b"\n", b"\r\n")).message


def test_a_missing_line_is_named() -> None:
    data = sum_up(b"".join(line for line in LINES[:-1] if not line.startswith(b"relay-receipt")))
    error = refusal(data)
    assert error.message == (
        "receipt part relay-receipt: its line is missing or begins with another name"
    )
    assert (error.code, error.hint) == (
        Code.CORRUPT,
        "this copy proves nothing: use an unchanged one",
    )


def test_two_lines_that_changed_places_are_refused() -> None:
    order = [*LINES[:2], LINES[3], LINES[2], *LINES[4:-1]]
    assert "receipt part terms: " in refusal(sum_up(b"".join(order))).message


def test_a_wrong_checksum_alone_is_named() -> None:
    assert refusal(FILE[:-2] + b"x\n").message.startswith("receipt part end: ")
    with pytest.raises(NovaMeshError, match="receipt part end: "):
        decode_receipt(FILE[:-2] + b"x\n")


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda text: text + b"=", Code.CORRUPT),
        (lambda text: text + b" ", Code.CORRUPT),
        (lambda text: b"+" + text[1:], Code.BAD_REQUEST),
        (lambda text: b"", Code.BAD_REQUEST),
        (repack(lambda data: data + b"\x78\x01"), Code.CORRUPT),
        (repack(lambda data: data + data), Code.BAD_REQUEST),
        (repack(lambda data: data[:-1]), Code.BAD_REQUEST),
        (repack(lambda data: data.replace(b".v1+protobuf", b".v2+protobuf")), Code.WRONG_TYPE),
    ],
    ids=["padding", "space", "plus", "empty", "unknown field", "twice", "cut", "other type"],
)
def test_an_envelope_in_another_form_is_refused(
    part: str, change: Callable[[bytes], bytes], code: Code
) -> None:
    error = refusal(forge(part, change))
    assert error.message.startswith(f"receipt part {part}: ")
    assert error.code is code


def test_unused_bits_of_the_last_character_must_be_zero() -> None:
    part = next(name for name in PARTS if len(LINES[NAMES.index(name)].split()[1]) % 4)
    alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

    def bump(text: bytes) -> bytes:
        return text[:-1] + bytes([alphabet[alphabet.index(text[-1]) + 1]])

    assert (
        refusal(forge(part, bump)).message == f"receipt part {part}: this is not in canonical form"
    )


@pytest.mark.parametrize("part", PARTS)
def test_a_signature_by_somebody_else_is_refused(part: str) -> None:
    envelope: Envelope = getattr(STORY.receipt, part.replace("-", "_"))
    thief = party("thief")
    stolen = replace(envelope, signatures=(Signature(thief.node_id, envelope.signatures[0].sig),))
    data = encode_receipt(replace(STORY.receipt, **{part.replace("-", "_"): stolen}))
    error = refusal(data)
    assert error.code is Code.BAD_SIGNATURE
    assert error.message.startswith(f"receipt part {part}: ")


@pytest.mark.parametrize("part", PARTS)
def test_a_part_of_another_receipt_is_refused_and_named(part: str) -> None:
    """The same parties did another job; its file lends one part to this one."""
    other = tell({"terms": {"idempotency_key": "job-2"}})
    if part == "descriptor":
        other = tell(node=party("another node"))
    field = part.replace("-", "_")
    mixed = replace(STORY.receipt, **{field: getattr(other.receipt, field)})
    assert refusal(encode_receipt(mixed)).message.startswith(f"receipt part {part}: ")


def test_another_coordinator_than_expected_is_refused() -> None:
    with pytest.raises(
        NovaMeshError, match="receipt part assignment: it is by coordinator"
    ) as caught:
        verify_receipt(FILE, coordinator=party("another").node_id)
    assert caught.value.code is Code.PIN_MISMATCH


def test_another_client_than_expected_is_refused() -> None:
    with pytest.raises(NovaMeshError, match="receipt part terms: they are by client") as caught:
        verify_receipt(FILE, client=party("another").node_id)
    assert caught.value.code is Code.FORBIDDEN


@pytest.mark.parametrize("part", ["descriptor", "terms", "assignment"])
def test_without_these_parts_nothing_is_proved(part: str) -> None:
    error = refusal(encode_receipt(replace(STORY.receipt, **{part: None})))
    assert error.message == (f"receipt part {part}: it is absent, and nothing is proved without it")


def test_without_attestation_and_checkpoint_nothing_is_proved() -> None:
    receipt = replace(STORY.receipt, attestation=None, checkpoint=None, settlement=None)
    assert "receipt part attestation: it is absent" in refusal(encode_receipt(receipt)).message


@pytest.mark.parametrize("part", ["checkpoint", "relay-receipt", "client-receipt", "settlement"])
def test_other_parts_may_be_absent(part: str) -> None:
    receipt = replace(STORY.receipt, **{part.replace("-", "_"): None})
    verified = verify_receipt(encode_receipt(receipt))
    assert part not in dict(verified.signatures)
    assert len(verified.signatures) == len(PARTS) - 1


def test_a_file_that_is_too_long_is_not_read() -> None:
    assert refusal(bytes(RECEIPT_BYTES_MAX + 1)).code is Code.TOO_LARGE


@pytest.mark.parametrize("data", [b"", b"\n", b"novamesh-receipt/v2\n", b"%PDF-1.7\n"])
def test_another_file_is_no_receipt(data: bytes) -> None:
    assert refusal(data).message.startswith("receipt part format: ")


envelopes = st.builds(
    Envelope,
    payload_type=st.text(min_size=1, max_size=40),
    payload=st.binary(max_size=200),
    signatures=st.tuples(
        st.builds(
            Signature,
            keyid=st.binary(min_size=38, max_size=38),
            sig=st.binary(min_size=64, max_size=64),
        )
    ),
)
parts = st.none() | envelopes


@given(st.builds(Receipt, **{part.replace("-", "_"): parts for part in PARTS}))
def test_any_receipt_is_read_as_it_was_written(receipt: Receipt) -> None:
    data = encode_receipt(receipt)
    assert decode_receipt(data) == receipt
    assert encode_receipt(decode_receipt(data)) == data


@given(st.binary(max_size=300) | st.binary(max_size=300).map(lambda data: LINES[0] + data))
def test_any_bytes_are_refused_with_a_code_of_ours(data: bytes) -> None:
    assert isinstance(refusal(data), NovaMeshError)


def test_envelopes_are_written_as_they_came() -> None:
    text = LINES[2].split()[1]
    data = base64.urlsafe_b64decode(text + b"=" * (-len(text) % 4))
    assert wire.decode(Envelope, data) == STORY.terms.envelope


@golden("receipt/receipt")
def test_golden_receipts(vector: Vector) -> None:
    lines = vector["lines"]
    data = "\n".join(lines).encode() + (b"" if vector.fields.get("cut") else b"\n")
    with vector.verdict():
        verified = verify_receipt(data, COORDINATOR.node_id, CLIENT.node_id)
        assert verified.prompt_tokens == vector["prompt_tokens"]
        assert verified.completion_tokens == vector["completion_tokens"]
        assert [finding.rule for finding in verified.findings] == vector["rules"]
    if not vector.ok:
        assert refusal(data).message.startswith(f"receipt part {vector['part']}: ")


def test_golden_receipts_are_made_the_same_again() -> None:
    assert (ROOT / "receipt/receipt.json").read_text() == render("receipt/receipt")
