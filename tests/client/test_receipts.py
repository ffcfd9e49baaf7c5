"""The folder of receipts: kept, found, refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from novamesh.completion import parts_of
from novamesh.receipts import FILE_BYTES_MAX, Receipts, read_receipt, verify_file
from novamesh_proto import envelope
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import JobId, JobPath
from novamesh_proto.receipt import Receipt, encode_receipt, verify_receipt
from support.answer_vectors import two
from support.donated_work import donated
from support.parties import CLIENT, COORDINATOR, party
from support.story import tell
from support.table import Table

STORY = tell()
RECEIPT = Receipt(
    descriptor=STORY.descriptor.envelope,
    terms=STORY.terms.envelope,
    assignment=STORY.assignment.envelope,
    attestation=STORY.attestation.envelope,
    relay_receipt=STORY.relay_receipt.envelope,
    client_receipt=STORY.client_receipt.envelope,
    settlement=STORY.settlement.envelope,
)
JOB = JobId(STORY.terms.id)


def test_receipt_is_kept_found_and_verified(tmp_path: Path) -> None:
    receipts = Receipts(tmp_path / "receipts")
    assert receipts.list() == ()
    path = receipts.save(JOB, RECEIPT)
    assert path.stat().st_mode & 0o777 == 0o600
    assert [(one.job, one.parts) for one in receipts.list()] == [(JOB.hex(), 1)]
    assert receipts.find(JOB.hex()[:8]) == receipts.find(str(path)) == path
    assert verify_file(path, COORDINATOR.node_id, CLIENT.node_id).job == JOB


def test_receipt_of_several_parts_says_so_in_the_list(tmp_path: Path) -> None:
    receipts = Receipts(tmp_path)
    path = receipts.save(JOB, two())
    (tmp_path / "0.receipt").write_text("no receipt")
    assert {one.path: one.parts for one in receipts.list()} == {
        path: 2, tmp_path / "0.receipt": 0,
    }  # fmt: skip
    assert len(verify_file(path).parts) == 2


def test_receipt_of_several_parts_is_found_by_any_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    receipts, answer = Receipts(tmp_path), two()
    jobs = [verified.job for verified in verify_receipt(encode_receipt(answer)).parts]
    path = receipts.save(jobs[-1], answer)
    receipts.save(JOB, RECEIPT)
    (tmp_path / f"{'0' * 64}.receipt").write_bytes(path.read_bytes()[:500])  # cut off
    for job in jobs:
        assert receipts.find(job.hex()) == receipts.find(job.hex()[:8].upper()) == path
    copy = receipts.save(JobId(bytes([jobs[0][0]]) + bytes(31)), RECEIPT)
    with pytest.raises(NovaMeshError) as caught:
        receipts.find(jobs[0].hex()[:2])
    assert caught.value.code is Code.CONFLICT
    copy.unlink()
    assert receipts.find(jobs[0].hex()[:2]) == path
    monkeypatch.chdir(tmp_path)
    other = Path(jobs[0].hex()[:8])
    other.write_text("some file of that name")
    assert receipts.find(str(other)) == other
    assert receipts.find_job(str(other)) == path


def test_what_is_not_there(tmp_path: Path) -> None:
    receipts = Receipts(tmp_path)
    receipts.save(JOB, RECEIPT)
    receipts.save(JobId(JOB[:4] + bytes(28)), RECEIPT)
    with pytest.raises(NovaMeshError) as caught:
        receipts.find(JOB.hex()[:6])
    assert caught.value.code is Code.CONFLICT
    for text in ("", "none", "ff" * 32):
        with pytest.raises(NovaMeshError) as caught:
            receipts.find(text) if text else receipts.find("no such file")
        assert caught.value.code is Code.NOT_FOUND


def test_other_parties_are_refused(tmp_path: Path) -> None:
    path = Receipts(tmp_path).save(JOB, RECEIPT)
    with pytest.raises(NovaMeshError) as caught:
        verify_file(path, party("somebody").node_id)
    assert caught.value.code is Code.PIN_MISMATCH
    with pytest.raises(NovaMeshError):
        verify_file(path, client=party("somebody").node_id)


def test_flipped_byte_is_refused_with_the_part(tmp_path: Path) -> None:
    path = Receipts(tmp_path).save(JOB, RECEIPT)
    data = path.read_bytes()
    for part in (b"terms", b"assignment", b"attestation", b"settlement"):
        at = data.index(part + b" ") + 300
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(NovaMeshError, match=part.decode()):
            verify_file(path)


def test_what_is_no_receipt(tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.write_bytes(b"x" * (FILE_BYTES_MAX + 1))
    with pytest.raises(NovaMeshError) as caught:
        read_receipt(large)
    assert caught.value.code is Code.TOO_LARGE
    with pytest.raises(NovaMeshError) as caught:
        read_receipt(tmp_path)
    assert caught.value.code is Code.NOT_FOUND


def test_donated_work_is_told_apart(tmp_path: Path) -> None:
    """The node was asked alone: nobody assigned it but itself, and nobody pays."""
    table = Table()
    given = donated(table, table.client(), table.node(), path=JobPath.TUNNEL)
    receipt = Receipt(
        descriptor=given.descriptor,
        terms=given.terms,
        assignment=given.assignment,
        attestation=given.attestation,
        client_receipt=given.receipt,
    )
    kept = Receipts(tmp_path)
    path = kept.save(JobId(envelope.message_id(given.terms)), receipt)
    kept.save(JOB, RECEIPT)
    assert {one.path: one.donated for one in kept.list()}[path]
    assert sum(one.donated for one in kept.list()) == 1
    (part,) = parts_of(verify_file(path, COORDINATOR.node_id))
    assert (part.donated, part.path) == (True, "tunnel")
    path.write_bytes(b"damaged")
    assert not any(one.donated for one in kept.list())
