"""Nodes' side: only the present attempt of a job counts, and a lie costs only the liar."""

from __future__ import annotations

import pytest

from novamesh_coordinator.effects import StopAttempt
from novamesh_coordinator.events import AttemptSettled, EvidenceKept
from novamesh_coordinator.floor import SPARE_CHUNKS
from novamesh_coordinator.jobs import EVIDENCE_KEPT_MAX
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import FinishReason, JobState
from support.actors import Attempt
from support.scene import Scene


@pytest.fixture
def scene() -> Scene:
    return Scene()


@pytest.mark.parametrize("way", ["cancel", "expire"])
def test_after_the_end_everything_is_answered_with_one_stop(scene: Scene, way: str) -> None:
    table, attempt = scene.table, scene.attempt
    code = Code.CANCELLED
    if way == "cancel":
        table.cancel(scene.client, scene.order.id)
    else:
        for _ in range(7):
            table.pass_time(10)
            if scene.state.terminal:
                break
            table.progress(attempt, round(table.clock.monotonic()))
        code = Code.EXPIRED
    before = len(table.log)
    table.taken(StopAttempt)
    table.decide(attempt)
    table.progress(attempt, 10_000)
    table.send(attempt, attempt.chunk())
    table.checkpoint(attempt)
    table.fail(attempt)
    stops = table.taken(StopAttempt)
    assert [(stop.code, stop.fence) for stop in stops] == [(code, attempt.ids["fence"])]
    assert len(table.log) == before


def test_an_expired_jobs_part_is_settled_once(scene: Scene) -> None:
    table, attempt = scene.table, scene.attempt
    for _ in range(5):
        table.pass_time(11)
        table.send(attempt, attempt.chunk())
    table.pass_time(6)
    assert scene.state is JobState.EXPIRED
    table.attest(attempt, attempt.attest(table.now_ms, FinishReason.CANCELLED))
    (paid,) = scene.records(AttemptSettled)
    assert isinstance(paid, AttemptSettled)
    assert (paid.outcome, paid.completion_tokens) == (JobState.EXPIRED, 5)
    assert scene.state is JobState.EXPIRED


def test_a_lie_about_a_cancelled_job_is_only_kept(scene: Scene) -> None:
    table, attempt = scene.table, scene.attempt
    table.send(attempt, attempt.chunk())
    table.cancel(scene.client, scene.order.id)
    table.attest(attempt, attempt.attest(table.now_ms, start_position=7))
    assert not scene.records(AttemptSettled)
    assert len(scene.records(EvidenceKept)) == 1
    table.attest(attempt, attempt.attest(table.now_ms, FinishReason.CANCELLED))
    assert len(scene.records(AttemptSettled)) == 1


def test_a_failed_jobs_late_attestation_is_only_kept(scene: Scene) -> None:
    table, attempt = scene.table, scene.attempt
    table.send(attempt, attempt.chunk(final=True))
    table.pass_time(16)
    assert scene.state is JobState.FAILED
    for _ in range(EVIDENCE_KEPT_MAX + 3):
        table.attest(attempt)
    assert not scene.records(AttemptSettled)
    assert len(scene.records(EvidenceKept)) == EVIDENCE_KEPT_MAX


def test_an_attestation_of_somebody_elses_job_is_ignored(scene: Scene) -> None:
    table = scene.table
    stranger = table.node("stranger")
    before = len(table.log)
    forged = scene.attempt.attest(table.now_ms)
    with pytest.raises(NovaMeshError) as refused:
        table.attest(
            Attempt(stranger, scene.attempt.assignment, scene.attempt.terms, scene.attempt.body),
            forged,
        )
    assert refused.value.code is Code.FORBIDDEN
    own = Attempt(stranger, scene.attempt.assignment, scene.attempt.terms, scene.attempt.body)
    table.attest(own, own.attest(table.now_ms))
    table.send(own, own.chunk())
    assert len(table.log) == before
    assert table.taken(StopAttempt)[-1].node == stranger.id
    assert scene.state is JobState.RUNNING


def test_empty_chunks_are_bounded(scene: Scene) -> None:
    table, attempt = scene.table, scene.attempt
    for _ in range(200 + SPARE_CHUNKS + 2):
        table.send(attempt, attempt.chunk(0))
    assert scene.state is JobState.FAILED


def test_a_checkpoint_of_what_was_not_sent_ends_the_attempt(scene: Scene) -> None:
    table, attempt = scene.table, scene.attempt
    table.send(attempt, attempt.chunk())
    table.checkpoint(attempt, position=5)
    assert table.view(scene.client, scene.order.id).code == "corrupt"


def test_an_older_checkpoint_takes_no_newer_ones_place(scene: Scene) -> None:
    table, attempt = scene.table, scene.attempt
    table.send(attempt, attempt.chunk())
    old = {"chunks": 1, "position": 1, "chain_head": attempt.sealer.head}
    table.send(attempt, attempt.chunk())
    stream = table.core.relay.get(scene.order.id)
    assert stream is not None
    for changes, kept in ((old, 1), ({}, 2), (old, 2)):
        table.checkpoint(attempt, **changes)
        assert stream.checkpoint is not None
        assert stream.checkpoint.message.chunks == kept
    assert scene.state is JobState.RUNNING


def test_an_older_checkpoint_must_be_of_the_chain_that_came(scene: Scene) -> None:
    table, attempt = scene.table, scene.attempt
    for _ in range(2):
        table.send(attempt, attempt.chunk())
    table.checkpoint(attempt, chunks=1, position=2)
    assert table.view(scene.client, scene.order.id).code == "corrupt"


def test_the_core_says_when_it_has_to_be_woken(scene: Scene) -> None:
    table = scene.table
    assert table.core.next_ms() == table.now.ticks_ms + 15_000
    table.send(scene.attempt, scene.attempt.chunk(final=True))
    table.attest(scene.attempt)
    assert table.core.next_ms() == table.now.ticks_ms + 600_000
    table.pass_time(601)
    assert table.core.next_ms() is None


def test_stops_are_remembered_within_bounds(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("novamesh_coordinator.sessions.STOPS_KEPT", 2)
    session = scene.table.core.registry.sessions.get(scene.node.id)
    assert session is not None
    assert [session.stop_once(scene.order.id, n) for n in (1, 2, 3, 3, 1)] == [
        True,
        True,
        True,
        False,
        True,
    ]
