"""The table of jobs: compare-and-set, and a record that does not fit is a bug."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from novamesh_coordinator.events import (
    AttemptAccepted,
    AttemptEnded,
    JobAdmitted,
    JobAssigned,
    JobEnded,
    JobsForgotten,
    MemberJoined,
)
from novamesh_coordinator.jobs import Jobs, JobsState
from novamesh_proto.messages import JobState
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
