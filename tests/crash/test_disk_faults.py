"""A real coordinator on a disk that fails mid-job: it refuses, tells, and goes on when it is well.

Each fault once here, by a library that stands before its system calls; `make disk` does it again
under strace and on a small file system of its own, where the machine allows that.
"""

from __future__ import annotations

import pytest

from support.bad_disks import DEAD, FULL, SLOW, SYNC_EIO, WRITE_EIO, Shim
from support.disk_faults import Trial, campaign

TRIALS = [Trial(Shim, fault, 0) for fault in (FULL, WRITE_EIO, SYNC_EIO, DEAD, SLOW)]
KILLED = [Trial(Shim, FULL, 1), Trial(Shim, SYNC_EIO, 1)]


@pytest.mark.skipif(bool(Shim.lacks()), reason=f"this machine lacks {Shim.lacks()}")
@pytest.mark.timeout(400)
async def test_a_disk_that_fails_costs_time_and_nothing_else() -> None:
    done = await campaign([*TRIALS, *KILLED])
    assert not {f"{t.name} {t.seed}": t.problems for t in done if t.problems}
    assert all(trial.hits for trial in done), "the disk did not fail at all"
