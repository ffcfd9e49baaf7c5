"""The file a client keeps: the signed envelopes of one job, verified years later without anybody.

    novamesh-receipt/v1
    descriptor <base64url of the envelope>          "-" where the client has none
    … terms, assignment, checkpoint, attestation, relay-receipt, client-receipt, settlement …
    end <SHA-256 of every byte before this line, hex>

An answer that went on at another node has several jobs; each is a section of the same eight lines:

    novamesh-receipt/v2
    section 1 of 2
    descriptor … settlement …
    section 2 of 2
    descriptor … settlement …
    end <SHA-256 of every byte before this line, hex>

Rules: one line a part, all of them, in this order; base64url without padding, and envelopes, only
in the one form that we would write, so that no byte can change unseen. Every signature is checked,
then that the parts belong together (`evidence`) and that each section goes on from the one before
(`continuation`). A refusal names what is wrong. Freshness plays no part: this is evidence, not a
request. It reads no file and asks nobody.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from novamesh_proto import envelope as envelopes
from novamesh_proto import wire
from novamesh_proto.continuation import check_continuation
from novamesh_proto.envelope import Signable, Verified
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.evidence import VerifiedReceipt, blame, check_evidence, wrong
from novamesh_proto.identity import short
from novamesh_proto.limits import CONTROL_BYTES_MAX, PARTS_MAX, RECEIPT_BYTES_MAX
from novamesh_proto.messages import (
    ChunkCheckpoint,
    ClientReceipt,
    Envelope,
    InferenceAttestation,
    JobAssignment,
    JobTerms,
    NodeDescriptor,
    NodeId,
    RelayReceipt,
    Settlement,
)

__all__ = [
    "Receipt",
    "VerifiedReceipt",
    "count_sections",
    "decode_receipt",
    "encode_receipt",
    "verify_receipt",
]

MAGIC: Final = b"novamesh-receipt/v1"
MAGIC_V2: Final = b"novamesh-receipt/v2"
ABSENT: Final = b"-"
PARTS: Final = (
    "descriptor",
    "terms",
    "assignment",
    "checkpoint",
    "attestation",
    "relay-receipt",
    "client-receipt",
    "settlement",
)

T = TypeVar("T", bound=Signable)


@dataclass(frozen=True, slots=True)
class Receipt:
    """The envelopes of one job, not verified; None where the client has none.

    `earlier` are the jobs whose answer this one goes on with, in order.
    """

    descriptor: Envelope | None = None
    terms: Envelope | None = None
    assignment: Envelope | None = None
    checkpoint: Envelope | None = None
    attestation: Envelope | None = None
    relay_receipt: Envelope | None = None
    client_receipt: Envelope | None = None
    settlement: Envelope | None = None
    earlier: tuple[Receipt, ...] = ()


def encode_receipt(receipt: Receipt) -> bytes:
    """The bytes of a receipt file. Nothing is verified.

    Raises:
        NovaMeshError: TOO_LARGE or BAD_REQUEST if an envelope breaks a bound, or the sections do.
    """
    sections = (*receipt.earlier, receipt)
    if len(sections) > PARTS_MAX:
        raise _too_many(len(sections))
    lines = [MAGIC if len(sections) == 1 else MAGIC_V2]
    for number, section in enumerate(sections, start=1):
        lines += [_heading(number, len(sections))] * (len(sections) > 1)
        for part in PARTS:
            envelope: Envelope | None = getattr(section, _field(part))
            text = ABSENT if envelope is None else _to_text(envelope)
            lines.append(part.encode() + b" " + text)
    data = b"".join(line + b"\n" for line in lines)
    return data + _end(data)


def decode_receipt(data: bytes) -> Receipt:
    """The envelopes in a receipt file, not verified.

    Raises:
        NovaMeshError: CORRUPT or BAD_REQUEST, naming the part that is damaged, or TOO_LARGE.
    """
    receipt, end = _parse(data)
    _check_end(data, end)
    return receipt


def count_sections(head: bytes) -> int:
    """How many sections a file says it has, by its first 64 bytes; 0 if it is no receipt."""
    lines = head.split(b"\n", 2)
    if lines[0] == MAGIC:
        return 1
    if lines[0] != MAGIC_V2 or len(lines) < 2:
        return 0
    return next((n for n in range(2, PARTS_MAX + 1) if lines[1] == _heading(1, n)), 0)


def verify_receipt(
    data: bytes, coordinator: NodeId | None = None, client: NodeId | None = None
) -> VerifiedReceipt:
    """What a receipt file proves.

    Args:
        data: The whole file.
        coordinator: The only coordinator that is taken; None takes any and leaves it to the caller.
        client: The only client that is taken; None takes any.

    Raises:
        NovaMeshError: its message names the part that is wrong. PIN_MISMATCH for another
            coordinator, FORBIDDEN for another client, else the code of what failed.
    """
    receipt, end = _parse(data)
    opened = [
        _verify_section(section, number, receipt, coordinator, client)
        for number, section in enumerate((*receipt.earlier, receipt), start=1)
    ]
    for number in range(1, len(opened)):
        with _section(number + 1, receipt):
            check_continuation(tuple(opened[:number]), opened[number])
    # Last, so that whatever else is wrong is named by its part.
    _check_end(data, end)
    return replace(opened[-1], earlier=tuple(opened[:-1]))


def _verify_section(
    section: Receipt,
    number: int,
    whole: Receipt,
    coordinator: NodeId | None,
    client: NodeId | None,
) -> VerifiedReceipt:
    with _section(number, whole):
        opened = _open_all(section, last=section is whole)
        check_evidence(opened)
        # Work that was donated has no coordinator, and nobody's pin speaks of it.
        if coordinator not in (None, opened.coordinator) and not opened.donated:
            problem = f"it is by coordinator {short(opened.coordinator)}, another one is expected"
            raise wrong("assignment", problem, Code.PIN_MISMATCH)
        if client not in (None, opened.client):
            problem = f"they are by client {short(opened.client)}, another one is expected"
            raise wrong("terms", problem, Code.FORBIDDEN)
        return opened


@contextmanager
def _section(number: int, whole: Receipt) -> Iterator[None]:
    """Where there are several sections, a refusal names which one is wrong too."""
    try:
        yield
    except NovaMeshError as error:
        if not whole.earlier:
            raise
        raise _in_section(number, error) from error


def _in_section(number: int, error: NovaMeshError) -> NovaMeshError:
    problem = error.message.removeprefix("receipt ")
    return NovaMeshError(error.code, f"receipt section {number}, {problem}", error.hint)


def _heading(number: int, count: int) -> bytes:
    return f"section {number} of {count}".encode()


def _too_many(count: int) -> NovaMeshError:
    problem = f"a receipt has at most {PARTS_MAX} sections, this one {count}"
    return NovaMeshError(Code.TOO_LARGE, problem, "choose the receipt file")


def _field(part: str) -> str:
    return part.replace("-", "_")


def _to_text(envelope: Envelope) -> bytes:
    return base64.urlsafe_b64encode(wire.encode(envelope)).rstrip(b"=")


def _from_text(text: bytes) -> Envelope:
    """The envelope of a line; only the text that we would write for it is taken."""
    try:
        data = base64.b64decode(text + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error:
        raise NovaMeshError(Code.CORRUPT, "this is not base64url") from None
    envelope = wire.decode(Envelope, data, CONTROL_BYTES_MAX)
    if _to_text(envelope) != text:
        raise NovaMeshError(Code.CORRUPT, "this is not in canonical form")
    return envelope


def _end(data: bytes) -> bytes:
    return b"end " + hashlib.sha256(data).hexdigest().encode() + b"\n"


def _check_end(data: bytes, end: int) -> None:
    if data[end:] != _end(data[:end]):
        raise wrong("end", "the checksum is not that of the file")


def _parse(data: bytes) -> tuple[Receipt, int]:
    """The envelopes, and where the end line begins; its checksum is not looked at."""
    bytes_max = RECEIPT_BYTES_MAX * (PARTS_MAX if data.startswith(MAGIC_V2) else 1)
    if len(data) > bytes_max:
        problem = f"a receipt has at most {bytes_max} bytes, this file {len(data)}"
        raise NovaMeshError(Code.TOO_LARGE, problem, "choose the receipt file")
    line, at = _line(data, 0, "format")
    if line == MAGIC:
        return _parse_section(data, at)
    if line == MAGIC_V2:
        return _parse_sections(data, at)
    raise wrong("format", f"the first line is not {MAGIC.decode()} or {MAGIC_V2.decode()}")


def _parse_sections(data: bytes, at: int) -> tuple[Receipt, int]:
    """The envelopes of a file in version 2, whose first heading begins at `at`."""
    count = count_sections(data[:64])
    if not count:
        raise wrong("format", f"there is no heading of 2 to {PARTS_MAX} sections")
    sections: list[Receipt] = []
    for number in range(1, count + 1):
        line, at = _line(data, at, "format")
        if line != _heading(number, count):
            raise wrong("format", f"the heading of section {number} is missing")
        try:
            section, at = _parse_section(data, at)
        except NovaMeshError as error:
            raise _in_section(number, error) from error
        sections.append(section)
    return replace(sections[-1], earlier=tuple(sections[:-1])), at


def _parse_section(data: bytes, at: int) -> tuple[Receipt, int]:
    """The envelopes of the eight lines that begin at `at`, and where the next line begins."""
    found: dict[str, Any] = {}
    for part in PARTS:
        line, at = _line(data, at, part)
        label, _, text = line.partition(b" ")
        if label != part.encode():
            raise wrong(part, "its line is missing or begins with another name")
        with blame(part):
            found[_field(part)] = None if text == ABSENT else _from_text(text)
    return Receipt(**found), at


def _line(data: bytes, at: int, part: str) -> tuple[bytes, int]:
    """The line that begins at `at`, and where the next one does."""
    newline = data.find(b"\n", at)
    if newline < 0:
        raise wrong(part, "the file is cut off here")
    return data[at:newline], newline + 1


def _open_all(receipt: Receipt, last: bool) -> VerifiedReceipt:
    """Open every part; which of them must be there is decided here.

    A node may die before it signs anything: then the next section says how far its part went.
    """
    opened = VerifiedReceipt(
        _demand("descriptor", _open("descriptor", receipt.descriptor, NodeDescriptor)),
        _demand("terms", _open("terms", receipt.terms, JobTerms)),
        _demand("assignment", _open("assignment", receipt.assignment, JobAssignment)),
        _open("checkpoint", receipt.checkpoint, ChunkCheckpoint),
        _open("attestation", receipt.attestation, InferenceAttestation),
        _open("relay-receipt", receipt.relay_receipt, RelayReceipt),
        _open("client-receipt", receipt.client_receipt, ClientReceipt),
        _open("settlement", receipt.settlement, Settlement),
    )
    ends = receipt.earlier and last
    if ends or (last and opened.checkpoint is None):
        _demand("attestation", opened.attestation)
    return opened


def _open(part: str, envelope: Envelope | None, cls: type[T]) -> Verified[T] | None:
    if envelope is None:
        return None
    with blame(part):
        # That all parts state the same pool is checked afterwards.
        return envelopes.open(envelope, cls, network=None)


def _demand(part: str, opened: Verified[T] | None) -> Verified[T]:
    if opened is None:
        raise wrong(part, "it is absent, and nothing is proved without it")
    return opened
