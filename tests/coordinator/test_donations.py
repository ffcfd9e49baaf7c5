"""Donated work: each job once, within bounds of time and number, and the same after a replay."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from novamesh_coordinator import donations
from novamesh_coordinator.donations import KEPT_MS, Donations, DonationsState
from novamesh_coordinator.effects import Turn
from novamesh_coordinator.events import Moment
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.evidence import VerifiedReceipt
from novamesh_proto.messages import ReceiptVerdict
from support.donated_work import donated
from support.table import Table


class Books:
    """Donations, and the records that changed them."""

    def __init__(self) -> None:
        self.table = Table()
        self.client, self.node = self.table.client(), self.table.node()
        self.kept = Donations(DonationsState())
        self.log: list[Any] = []

    def proof(self, **receipt: Any) -> VerifiedReceipt:
        told = donated(self.table, self.client, self.node, **receipt)
        return self.table.verifier.open_donation(told)

    def take(self, proof: VerifiedReceipt, late_ms: int = 0) -> None:
        now = Moment(self.table.now_ms + late_ms, 0)
        turn = Turn(now, random.Random(1), self.kept.apply)
        self.kept.take(turn, proof)
        self.log += turn.records
        assert not turn.effects


@pytest.fixture
def books() -> Books:
    return Books()


def test_a_job_is_counted_once_and_replays_to_the_same(books: Books) -> None:
    first, second = books.proof(), books.proof()
    for proof in (first, second, first):
        books.take(proof)
    found = books.kept.of(books.node.id)
    assert (found.jobs, found.completion_tokens) == (2, 6)
    again = Donations(DonationsState())
    for record in books.log:
        again.apply(record)
    assert again.dump() == books.kept.dump() == Donations(books.kept.dump()).dump()
    assert books.kept.of(books.client.id).jobs == 0


def test_what_is_logged_is_the_whole_evidence(books: Books) -> None:
    proof = books.proof()
    books.take(proof)
    (record,) = books.log
    assert (record.job, record.client, record.node) == (proof.job, proof.client, proof.node)
    assert record.donation[0] == proof.terms.envelope
    assert record.donation[3] == proof.client_receipt.envelope  # type: ignore[union-attr]


@pytest.mark.parametrize("verdict", [ReceiptVerdict.MISMATCH, ReceiptVerdict.INCOMPLETE])
def test_only_what_its_client_confirms(books: Books, verdict: ReceiptVerdict) -> None:
    with pytest.raises(NovaMeshError) as caught:
        books.take(books.proof(verdict=verdict))
    assert caught.value.code is Code.BAD_REQUEST
    with pytest.raises(NovaMeshError):
        books.take(replace(books.proof(), client_receipt=None))


def test_what_is_too_old_is_not_taken_so_that_nothing_is_counted_twice(books: Books) -> None:
    proof = books.proof()
    books.take(proof, KEPT_MS)
    assert books.kept.of(books.node.id).jobs == 1
    with pytest.raises(NovaMeshError) as caught:
        books.take(proof, 2 * KEPT_MS)
    assert caught.value.code is Code.EXPIRED


def test_what_is_remembered_is_bounded(books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(donations, "REMEMBERED_MAX", 2)
    kept = [books.proof() for _ in range(2)]
    for proof in kept:
        books.take(proof)
    with pytest.raises(NovaMeshError) as caught:
        books.take(books.proof())
    assert caught.value.code is Code.BUSY
    books.take(kept[0])  # known: told again in vain
    assert books.kept.of(books.node.id).jobs == 2
    assert len(books.kept.dump().jobs) == 2
