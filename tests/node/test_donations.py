"""Donated work is on disk until the coordinator has logged it, within its bound."""

from __future__ import annotations

from pathlib import Path

import pytest

from novamesh_node import donations
from novamesh_node.donations import Donations
from novamesh_proto import envelope
from novamesh_proto.messages import Donation, JobId
from support.parties import CLIENT, NODE, descriptor, head, sign, terms


def donation(label: str) -> Donation:
    told = sign(terms(header=head(CLIENT, NODE, label=label)), CLIENT).envelope
    other = sign(descriptor(), NODE).envelope
    return Donation(told, other, other, other, other)


def job(each: Donation) -> JobId:
    return JobId(envelope.message_id(each.terms))


def test_what_was_added_is_pending_until_it_is_dropped(tmp_path: Path) -> None:
    one, two = donation("one"), donation("two")
    kept = Donations(tmp_path / "donations")
    assert kept.pending() == ()
    for each in (one, two, one):
        kept.add(each)
    assert set(map(job, kept.pending())) == {job(one), job(two)}
    kept.drop(job(one))
    kept.drop(job(one))
    assert Donations(tmp_path / "donations").pending() == (two,)


def test_the_oldest_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(donations, "DONATIONS_MAX", 3)
    kept, made = Donations(tmp_path), [donation(str(number)) for number in range(5)]
    for each in made:
        kept.add(each)
    assert kept.pending() == tuple(made[2:])


def test_a_damaged_file_is_put_aside_and_stops_no_other(tmp_path: Path) -> None:
    kept = Donations(tmp_path)
    kept.add(donation("whole"))
    damaged = tmp_path / job(donation("damaged")).hex()
    damaged.write_bytes(b"\xff\xff")
    damaged.chmod(0o600)
    assert kept.pending() == (donation("whole"),)
    assert not damaged.exists()
