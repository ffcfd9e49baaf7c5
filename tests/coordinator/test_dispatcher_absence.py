"""Who was away, for how long, and whom it is counted against: the node, or nobody."""

from __future__ import annotations

import pytest

from novamesh_coordinator.events import AttemptEnded
from novamesh_proto.errors import Code
from novamesh_proto.messages import FinishReason, JobState
from support.scene import Scene


@pytest.fixture
def scene() -> Scene:
    """A job of whose answer the client has a part."""
    begun = Scene()
    begun.table.send(begun.attempt, begun.attempt.chunk(2))
    begun.table.checkpoint(begun.attempt)
    return begun


def blamed(scene: Scene) -> int:
    """How many lost jobs the node's record counts."""
    return scene.table.core.ledger.standing(scene.node.id).jobs_lost


def why(scene: Scene) -> str:
    """What the log says of the attempt that ended."""
    (end,) = scene.records(AttemptEnded)
    assert isinstance(end, AttemptEnded)
    return end.message


def test_what_was_begun_fails_soon_after_its_stream_broke(scene: Scene) -> None:
    scene.table.detach(scene.node)
    scene.table.pass_time(4.9)
    assert scene.state is JobState.RUNNING
    scene.table.pass_time(0.2)
    assert scene.table.view(scene.client, scene.order.id).code == Code.NODE_LOST
    assert why(scene) == "the node vanished and did not come back in time"
    assert blamed(scene) == 1


def test_a_node_that_returns_in_time_goes_on_unharmed(scene: Scene) -> None:
    table, attempt = scene.table, scene.attempt
    table.detach(scene.node)
    table.pass_time(4.5)
    assert table.attach(scene.node, (attempt.running,))[0].chunks == 1
    table.pass_time(14.5)  # its lease is a whole one again
    table.send(attempt, attempt.chunk(final=True))
    table.attest(attempt)
    assert scene.state is JobState.SETTLED
    assert blamed(scene) == 0


def test_a_node_that_stays_and_is_silent_has_its_whole_lease(scene: Scene) -> None:
    scene.table.pass_time(14.9)
    assert scene.state is JobState.RUNNING
    scene.table.pass_time(0.2)
    assert why(scene) == "the node gave no sign of work for 15 s"
    assert blamed(scene) == 1


def test_a_lease_that_is_nearly_over_is_made_no_longer(scene: Scene) -> None:
    scene.table.pass_time(13)
    scene.table.detach(scene.node)
    scene.table.pass_time(2.1)
    assert scene.state is JobState.FAILED


def test_a_detach_lengthens_nothing_however_often(scene: Scene) -> None:
    scene.table.detach(scene.node)
    scene.table.detach(scene.node)
    scene.table.pass_time(5.1)
    assert scene.state is JobState.FAILED


def test_a_coordinator_that_stops_takes_nobody_for_lost() -> None:
    scene = Scene()
    other = scene.table.node("other")
    scene.table.order(scene.client, scene.node, other, key="job-2")
    scene.table.detach(scene.node, stopping=True)
    scene.table.detach(other, stopping=True)
    assert scene.records(AttemptEnded) == []
    scene.table.restart()
    scene.table.pass_time(29)
    assert scene.records(AttemptEnded) == []


def test_after_a_restart_nobody_is_blamed_for_not_coming_back(scene: Scene) -> None:
    scene.table.restart()
    scene.table.pass_time(30.1)
    assert scene.state is JobState.FAILED
    assert blamed(scene) == 0


def test_after_a_restart_nobody_is_blamed_for_coming_without_the_attempt(scene: Scene) -> None:
    scene.table.restart()
    scene.table.attach(scene.node)
    assert why(scene) == "the node came back without the attempt"
    assert blamed(scene) == 0


def test_a_node_that_lost_its_attempt_by_itself_is_blamed(scene: Scene) -> None:
    scene.table.detach(scene.node)
    scene.table.attach(scene.node)
    assert why(scene) == "the node came back without the attempt"
    assert blamed(scene) == 1


def test_once_it_has_resumed_after_a_restart_a_node_answers_for_itself(scene: Scene) -> None:
    scene.table.restart()
    scene.table.attach(scene.node, (scene.attempt.running,))
    scene.table.pass_time(15.1)
    assert scene.state is JobState.FAILED
    assert blamed(scene) == 1


def test_a_coordinator_that_was_frozen_gives_leases_anew(scene: Scene) -> None:
    table, attempt = scene.table, scene.attempt
    table.pass_time(1)
    table.clock.advance(40)  # not a tick meanwhile
    table.pass_time(1)
    assert scene.state is JobState.RUNNING
    table.send(attempt, attempt.chunk(final=True))
    table.attest(attempt)
    assert scene.state is JobState.SETTLED


def test_nobody_is_blamed_who_was_lost_while_the_coordinator_was_frozen(scene: Scene) -> None:
    scene.table.pass_time(1)
    scene.table.clock.advance(40)
    scene.table.pass_time(0)
    scene.table.detach(scene.node)
    scene.table.pass_time(5.1)
    assert scene.state is JobState.FAILED
    assert blamed(scene) == 0


@pytest.mark.parametrize(
    ("code", "lost"),
    [("unavailable", 0), ("cancelled", 0), ("expired", 0), ("internal", 1), ("busy", 1)],
)
def test_who_hands_work_back_in_order_is_not_blamed(scene: Scene, code: str, lost: int) -> None:
    scene.table.fail(scene.attempt, code)
    assert scene.table.view(scene.client, scene.order.id).code == code
    assert blamed(scene) == lost


@pytest.mark.parametrize(
    ("finish", "lost"), [(FinishReason.CANCELLED, 0), (FinishReason.FAILED, 1)]
)
def test_a_part_that_its_client_cut_short_is_nobodys_fault(
    scene: Scene, finish: FinishReason, lost: int
) -> None:
    table, attempt = scene.table, scene.attempt
    table.send(attempt, attempt.chunk(1, final=True))
    table.attest(attempt, attempt.attest(table.now_ms, finish))
    assert scene.state is JobState.FAILED
    assert blamed(scene) == lost


def test_reliability_is_what_it_was_after_a_handover_in_order(scene: Scene) -> None:
    """What matching ranks by: nothing of it changed."""
    before = scene.table.core.ledger.standing(scene.node.id)
    scene.table.fail(scene.attempt, "unavailable")
    after = scene.table.core.ledger.standing(scene.node.id)
    assert (after.jobs_lost, after.jobs_settled) == (before.jobs_lost, before.jobs_settled)
