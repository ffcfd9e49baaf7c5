"""Records of jobs under way: whole, private, gone in time."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from novamesh.completion import Piece
from novamesh.job_records import JobRecord, JobRecords
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import JobId, PositionLogprobs, TokenLogprob
from support.answers import send_answer
from support.clock import START_MS
from support.parties import digest, party
from support.story import tell

STORY = tell()
RECORD = JobRecord(
    model="nova-pico",
    terms=STORY.terms,
    response_key=digest("response key"),
    client_seed=digest("seed"),
    candidates=(STORY.descriptor,),
    submitted_at_ms=START_MS,
)


def test_record_is_loaded_as_it_was_saved(tmp_path: Path) -> None:
    records = JobRecords(tmp_path / "jobs")
    assert records.jobs() == ()
    records.save(RECORD)
    assert records.load(RECORD.job) == RECORD
    assert records.jobs() == (RECORD.job,)
    (file,) = (tmp_path / "jobs").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    records.remove(RECORD.job)
    records.remove(RECORD.job)
    assert records.jobs() == ()


def test_candidate_is_found_by_its_node() -> None:
    assert RECORD.candidate(STORY.descriptor.issuer) is STORY.descriptor
    assert RECORD.candidate(party("stranger").node_id) is None


def test_secrets_are_not_shown() -> None:
    assert RECORD.response_key.hex() not in repr(RECORD)
    assert str(RECORD.response_key) not in repr(RECORD)


def test_missing_record_says_whose_answer_it_is(tmp_path: Path) -> None:
    with pytest.raises(NovaMeshError) as caught:
        JobRecords(tmp_path).load(JobId(bytes(32)))
    assert caught.value.code is Code.NOT_FOUND
    assert "only the client" in caught.value.hint


@pytest.mark.parametrize("place", ["version", "terms", "response_key", "candidates", "network"])
def test_damaged_record_is_refused(tmp_path: Path, place: str) -> None:
    records = JobRecords(tmp_path)
    records.save(RECORD)
    (file,) = tmp_path.iterdir()
    text = file.read_text()
    at = text.index(f'"{place}": ') + len(place) + 5
    for broken in (text[:at] + "!" + text[at + 1 :], text[: len(text) // 2]):
        file.write_text(broken)
        with pytest.raises(NovaMeshError) as caught:
            records.load(RECORD.job)
        assert caught.value.code is Code.CORRUPT


def test_record_that_others_can_read_is_refused(tmp_path: Path) -> None:
    records = JobRecords(tmp_path)
    records.save(RECORD)
    (file,) = tmp_path.iterdir()
    file.chmod(0o644)
    with pytest.raises(NovaMeshError) as caught:
        records.load(RECORD.job)
    assert caught.value.code is Code.BAD_KEY


def test_record_of_a_later_part_holds_the_parts_before(tmp_path: Path) -> None:
    logprobs = (PositionLogprobs(TokenLogprob(9, -0.5), (TokenLogprob(8, -2.0),)),)
    received = (Piece("a \u20ac", (9,), logprobs), Piece("", (1, 2)))
    later = replace(RECORD, earlier=(STORY.receipt, STORY.receipt), received=received)
    records = JobRecords(tmp_path)
    records.save(later)
    assert records.load(RECORD.job) == later
    assert "\u20ac" not in repr(later)


def test_record_of_version_1_is_read(tmp_path: Path) -> None:
    records = JobRecords(tmp_path)
    records.save(RECORD)
    (file,) = tmp_path.iterdir()
    document = json.loads(file.read_text())
    del document["earlier"], document["received"]
    file.write_text(json.dumps(document | {"version": 1}))
    assert records.load(RECORD.job) == RECORD


def test_old_records_are_forgotten(tmp_path: Path) -> None:
    records = JobRecords(tmp_path)
    records.save(RECORD)
    (file,) = tmp_path.iterdir()
    os.utime(file, (START_MS / 1000, START_MS / 1000))
    assert records.prune(START_MS + 1_199_000) == 0
    assert records.prune(START_MS + 1_201_000) == 1
    assert records.jobs() == ()


def test_a_record_that_is_removed_meanwhile_disturbs_nobody(tmp_path: Path) -> None:
    records = JobRecords(tmp_path)
    records.save(RECORD)
    (tmp_path / f"{'00' * 32}.json").symlink_to(tmp_path / "gone")
    assert records.jobs() == (RECORD.job,)
    os.utime(tmp_path / f"{RECORD.job.hex()}.json", (START_MS / 1000, START_MS / 1000))
    assert records.prune(START_MS + 1_201_000) == 1


def test_a_record_is_found_by_its_job_or_a_part_of_its_answer(tmp_path: Path) -> None:
    """Of two that go on with an answer the newer one; its own record needs no other one."""
    records = JobRecords(tmp_path)
    stale, live = (replace(send_answer().record, earlier=(STORY.receipt,)) for _ in range(2))
    assert stale.job != live.job
    for age_s, record in ((200, live), (100, stale)):
        records.save(record)
        os.utime(tmp_path / f"{record.job.hex()}.json", (START_MS / 1000 - age_s,) * 2)
    assert records.find(RECORD.job) == stale
    os.utime(tmp_path / f"{live.job.hex()}.json", (START_MS / 1000,) * 2)
    assert records.find(RECORD.job) == live
    assert records.find(stale.job) == stale
    records.save(RECORD)
    (tmp_path / f"{live.job.hex()}.json").write_text("damaged")
    assert records.find(RECORD.job) == RECORD
    with pytest.raises(NovaMeshError) as caught:
        records.find(JobId(bytes(32)))
    assert caught.value.code is Code.NOT_FOUND
