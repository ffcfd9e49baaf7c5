"""The table of jobs: compare-and-set, and a record that does not fit is a bug."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from novamesh_coordinator.events import (
    AttemptAccepted,
    AttemptEnded,
    AttemptSettled,
    EvidenceKept,
    JobAdmitted,
    JobAssigned,
    JobEnded,
    JobsForgotten,
    MemberJoined,
)
from novamesh_coordinator.jobs import Jobs, JobsState
from novamesh_proto.messages import JobId, JobState
from support.table import Table


def story() -> tuple[Table, list[Any]]:
    """The records of a job from admission to settlement."""
    table = Table()
    client, node = table.client(), table.node()
    table.order(client, node)
    table.answer(table.assigned(node))
    return table, [record for record in table.log if hasattr(record, "job")]


def test_a_job_goes_its_way_and_back_into_a_table() -> None:
    table, records = story()
    jobs, states = Jobs(JobsState()), []
    for record in records:
        states.append(jobs.apply(record).state)
        assert Jobs(jobs.dump()).dump() == jobs.dump()
    assert states == [
        JobState.ADMITTED,
        JobState.ASSIGNED,
        JobState.RUNNING,
        JobState.SETTLED,
    ]
    assert jobs.dump() == table.core.jobs.dump()
    (job,) = jobs.dump().jobs
    assert (job.terms, job.assignment, job.candidates) == (None, None, ())
    assert (jobs.live_count(), jobs.active(job.node), len(jobs)) == (0, 0, 1)


@pytest.mark.parametrize("step", range(4))
def test_no_record_applies_twice(step: int) -> None:
    _, records = story()
    jobs = Jobs(JobsState())
    for record in records[: step + 1]:
        jobs.apply(record)
    with pytest.raises(AssertionError):
        jobs.apply(records[step])


def test_compare_and_set_on_attempt_and_fence() -> None:
    _, records = story()
    admitted, assigned, accepted, settled = records
    assert isinstance(admitted, JobAdmitted)
    assert isinstance(assigned, JobAssigned)
    assert isinstance(accepted, AttemptAccepted)
    jobs = Jobs(JobsState())
    jobs.apply(admitted)
    for wrong in (replace(assigned, attempt=2), replace(assigned, fence=0)):
        with pytest.raises(AssertionError):
            jobs.apply(wrong)
    jobs.apply(assigned)
    for wrong_accept in (replace(accepted, attempt=2), replace(accepted, fence=9)):
        with pytest.raises(AssertionError):
            jobs.apply(wrong_accept)
    for wrong_settled in (replace(settled, attempt=2), replace(settled, fence=9)):
        with pytest.raises(AssertionError):
            jobs.apply(wrong_settled)
    job = assigned.job
    jobs.apply(AttemptEnded(job, 0, 1, assigned.fence, assigned.node, "x", "", True))
    with pytest.raises(AssertionError):
        jobs.apply(replace(assigned, attempt=2))  # the fence has to grow
    jobs.apply(replace(assigned, attempt=2, fence=assigned.fence + 1))
    jobs.apply(JobEnded(job, 5, JobState.FAILED, "x", "y"))
    with pytest.raises(AssertionError):
        jobs.apply(JobEnded(job, 6, JobState.EXPIRED, "x", "y"))


def test_what_is_no_jobs_record_is_a_bug() -> None:
    table, records = story()
    joined = next(r for r in table.log if isinstance(r, MemberJoined))
    jobs = Jobs(JobsState())
    jobs.apply(records[0])

    class Odd:
        job = records[0].job

    with pytest.raises(TypeError):
        jobs.apply(Odd())  # type: ignore[arg-type]
    assert joined


def test_forgetting_leaves_nothing_behind() -> None:
    _, records = story()
    jobs = Jobs(JobsState())
    for record in records:
        jobs.apply(record)
    ended_ms = jobs.oldest_ended_ms()
    assert ended_ms is not None
    assert jobs.forget(JobsForgotten(0, ended_ms)) == ()
    assert jobs.forget(JobsForgotten(0, ended_ms + 1)) == (records[0].job,)
    assert (len(jobs), jobs.oldest_ended_ms()) == (0, None)
    assert jobs.find(records[0].client, "job-1") is None
    assert jobs.of_client(records[0].client, 5) == ()
    assert jobs.dump() == JobsState((), jobs.last_fence)


def test_a_clock_that_goes_back_changes_nothing_of_what_is_forgotten() -> None:
    """Jobs that ended in one order of the log, and in another of the wall clock."""
    table, records = story()
    first, jobs = table.core.jobs.dump().jobs[0], Jobs(JobsState())
    for number in range(4):
        name = JobId(bytes([number]) * 32)
        for record in records:
            changes: dict[str, Any] = {"job": name}
            if isinstance(record, JobAdmitted):
                changes |= {"root": name, "key": f"{number}"}
            if isinstance(record, JobAssigned):
                changes |= {"fence": jobs.last_fence + 1}
            elif hasattr(record, "fence"):
                changes |= {"fence": jobs.last_fence}
            if isinstance(record, AttemptSettled):
                changes |= {"at_ms": first.ended_ms - 100 * number}
            jobs.apply(replace(record, **changes))
    again = Jobs(jobs.dump())
    assert jobs.oldest_ended_ms() == again.oldest_ended_ms() == first.ended_ms - 300
    for before_ms in (first.ended_ms - 250, first.ended_ms - 50, first.ended_ms + 1):
        gone = [set(one.forget(JobsForgotten(0, before_ms))) for one in (jobs, again)]
        assert gone[0] == gone[1]
        assert jobs.dump() == again.dump()
    assert len(jobs) == 0


def test_a_table_can_be_asked_by_client_key_and_node() -> None:
    table = Table()
    client, other, node = table.client(), table.client("other"), table.node(slots=4)
    orders = [table.order(client, node, key=key) for key in ("one", "two", "three")]
    foreign = table.order(other, node, key="one")
    jobs = table.core.jobs
    assert [job.job for job in jobs.live()] == [*(order.id for order in orders), foreign.id]
    assert [job.job for job in jobs.on_node(node.id)] == [job.job for job in jobs.live()]
    assert (jobs.live_count(), jobs.live_count(client.id), jobs.active(node.id)) == (4, 3, 4)
    assert jobs.live_count(node.id) == 0
    found = jobs.find(client.id, "two")
    assert found is not None
    assert found.job == orders[1].id
    assert [job.job for job in jobs.of_client(client.id, 2)] == [orders[2].id, orders[1].id]
    table.cancel(client, orders[0].id)
    assert (jobs.live_count(), jobs.live_count(client.id), jobs.active(node.id)) == (3, 2, 3)
    again = Jobs(jobs.dump())
    assert again.dump() == jobs.dump()
    assert (again.live(), again.on_node(node.id)) == (jobs.live(), jobs.on_node(node.id))
    assert again.oldest_ended_ms() == jobs.oldest_ended_ms() == table.now_ms
    table.pass_time(1_900)
    assert table.core.jobs.live() == ()
    assert jobs.live_count(client.id) == 0


def test_evidence_is_counted_and_a_receipt_remembered() -> None:
    table, records = story()
    jobs = Jobs(JobsState())
    for record in records:
        jobs.apply(record)
    job = records[0].job
    kept = EvidenceKept(job, 1, records[0].client, "late_attestation", records[0].terms)
    assert (jobs.apply(kept).evidence, jobs.apply(kept).receipt) == (1, False)
    assert jobs.apply(replace(kept, kind="client_receipt")).receipt
    after = jobs.apply(kept)
    assert (after.evidence, after.receipt) == (4, True)
    assert table.core.jobs.get(job) is not None


def test_an_answer_in_parts_is_forgotten_with_its_last_part() -> None:
    table = Table()
    client, node = table.client(), table.node()
    first = table.order(client, node, key="first")
    attempt = table.assigned(node)
    table.send(attempt, attempt.chunk(2))
    table.cancel(client, first.id)
    ended_ms = table.now_ms
    table.clock.advance(10)
    table.order(client, node, key="second", parent=first.id, held=2)
    jobs = table.core.jobs
    assert jobs.forget(JobsForgotten(0, ended_ms + 1)) == (), "its root is still needed"
    assert (len(jobs), len(jobs.of_client(client.id, 9))) == (1, 1)
    table.cancel(client, jobs.live()[0].job)
    assert jobs.forget(JobsForgotten(0, table.now_ms + 1)) == (first.id,)


def test_a_part_of_a_job_that_ended_is_settled_under_that_end() -> None:
    _, records = story()
    *before, settled = records
    jobs = Jobs(JobsState())
    for record in before:
        jobs.apply(record)
    job = settled.job
    ended = jobs.apply(JobEnded(job, 5, JobState.CANCELLED, "cancelled", "by its client", 7))
    assert (ended.tokens, ended.code, ended.message, ended.ended_ms) == (
        7,
        "cancelled",
        "by its client",
        5,
    )
    with pytest.raises(AssertionError):
        jobs.apply(replace(settled, outcome=JobState.EXPIRED))
    with pytest.raises(AssertionError):
        jobs.apply(settled)
    part = jobs.apply(replace(settled, outcome=JobState.CANCELLED, completion_tokens=2))
    assert (part.state, part.settled, part.tokens, part.ended_ms) == (
        JobState.CANCELLED,
        True,
        2,
        5,
    )
    assert part.view(9).tokens == 9
    assert part.view().tokens == 2


def test_ended_jobs_are_forgotten_in_the_order_of_their_end() -> None:
    table = Table()
    client, node = table.client(), table.node(slots=4)
    one, two = (table.order(client, node, key=key) for key in ("one", "two"))
    table.cancel(client, two.id)
    first_ms = table.now_ms
    table.clock.advance(5)
    table.cancel(client, one.id)
    for jobs in (table.core.jobs, Jobs(table.core.jobs.dump())):
        assert jobs.oldest_ended_ms() == first_ms
        assert jobs.forget(JobsForgotten(0, table.now_ms)) == (two.id,)
        assert jobs.oldest_ended_ms() == table.now_ms
