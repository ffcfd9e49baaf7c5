"""Why a job brought no answer is said with what to do next."""

from __future__ import annotations

import pytest

from novamesh.conclusion import failure_of, lost_answer
from novamesh_proto.errors import Code
from novamesh_proto.messages import JobId, JobState, JobView
from support.parties import PROFILE


@pytest.mark.parametrize(
    ("state", "code", "expected"),
    [
        (JobState.FAILED, "", Code.NODE_LOST),
        (JobState.FAILED, "busy", Code.BUSY),
        (JobState.EXPIRED, "", Code.EXPIRED),
        (JobState.CANCELLED, "", Code.CANCELLED),
    ],
)
def test_a_bad_end_has_a_code_and_a_sentence(state: JobState, code: str, expected: Code) -> None:
    view = JobView(JobId(bytes(32)), state, 1, b"", PROFILE, 0, code=code)
    error = failure_of(view)
    assert error.code is expected
    assert error.message == f"the job ended {state.name.lower()}"
    assert bool(error.hint) == (expected is not Code.CANCELLED)


def test_an_answer_that_the_pool_let_go_accuses_nobody() -> None:
    assert lost_answer().code is Code.STALE
