"""Every job and where it is: the one table, changed by records only.

Rules: a job moves by compare-and-set on (job, state, attempt, fence); a terminal state is final;
the fence grows with every assignment and never repeats. An ended job keeps what its client may ask
about and what bars a second submission; its envelopes are in the log. Decisions are made in
`dispatcher`; here a record that does not fit is a bug of ours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from heapq import heapify, heappop, heappush
from typing import Final

from novamesh_coordinator.events import (
    AttemptAccepted,
    AttemptEnded,
    AttemptSettled,
    EvidenceKept,
    JobAdmitted,
    JobAssigned,
    JobEnded,
    JobsForgotten,
)
from novamesh_proto.messages import (
    Envelope,
    JobId,
    JobState,
    JobView,
    NodeId,
    ProfileDigest,
)

NOBODY = NodeId(b"")
EVIDENCE_KEPT_MAX: Final = 8  # records of evidence for one job, beyond its settlement


@dataclass(frozen=True, slots=True)
class Job:
    """One job; `tried` are the nodes of its attempts so far, `evidence` counts what was kept."""

    job: JobId
    client: NodeId
    key: str
    model_profile: ProfileDigest
    admitted_ms: int
    timeout_ms: int
    max_tokens: int
    body_bytes: int
    start_position: int
    root: JobId
    candidates: tuple[NodeId, ...]
    terms: Envelope | None
    state: JobState = JobState.ADMITTED
    attempt: int = 0
    fence: int = 0
    node: NodeId = NOBODY
    assigned_ms: int = 0
    assignment: Envelope | None = None
    tried: tuple[NodeId, ...] = ()
    settled: bool = False
    tokens: int = 0
    code: str = ""
    message: str = ""
    ended_ms: int = 0
    evidence: int = 0
    receipt: bool = False

    @property
    def at_work(self) -> bool:
        """Whether an attempt is under way."""
        return self.state in (JobState.ASSIGNED, JobState.RUNNING)

    def is_worked_on(self, node: NodeId, attempt: int, fence: int) -> bool:
        """Whether exactly this attempt is under way."""
        return self.at_work and (self.node, self.attempt, self.fence) == (node, attempt, fence)

    def view(self, tokens: int = 0) -> JobView:
        """The job as its client sees it."""
        return JobView(
            job=self.job,
            state=self.state,
            attempt=self.attempt,
            node=self.node,
            model_profile=self.model_profile,
            admitted_at_ms=self.admitted_ms,
            tokens=max(self.tokens, tokens),
            code=self.code,
            message=self.message,
        )


@dataclass(frozen=True, slots=True)
class JobsState:
    """All of it; jobs in the order they were admitted."""

    jobs: tuple[Job, ...] = ()
    last_fence: int = 0


JobRecord = (
    JobAdmitted
    | JobAssigned
    | AttemptAccepted
    | AttemptEnded
    | JobEnded
    | AttemptSettled
    | EvidenceKept
)


class Jobs:
    """The table and what is worked out from it: by client, by key, by node, in order of ending."""

    def __init__(self, state: JobsState) -> None:
        self._jobs: dict[JobId, Job] = {}
        self._by_client: dict[NodeId, dict[JobId, None]] = {}
        self._by_key: dict[tuple[NodeId, str], JobId] = {}
        self._by_node: dict[NodeId, dict[JobId, None]] = {}
        self._by_root: dict[JobId, int] = {}
        self._live: dict[JobId, None] = {}
        self._live_by_client: dict[NodeId, int] = {}
        self._ended: list[tuple[int, JobId]] = []  # a heap: the wall clock may have gone back
        self.last_fence = state.last_fence
        for job in state.jobs:
            self._insert(job)
        self._ended += [(job.ended_ms, job.job) for job in state.jobs if job.state.terminal]
        heapify(self._ended)

    def dump(self) -> JobsState:
        """The state."""
        return JobsState(tuple(self._jobs.values()), self.last_fence)

    def __len__(self) -> int:
        return len(self._jobs)

    def get(self, job: JobId) -> Job | None:
        """A job that is still kept."""
        return self._jobs.get(job)

    def find(self, client: NodeId, key: str) -> Job | None:
        """The job that a client submitted under a key."""
        job = self._by_key.get((client, key))
        return self._jobs[job] if job is not None else None

    def of_client(self, client: NodeId, count: int) -> tuple[Job, ...]:
        """A client's jobs, newest first."""
        mine = self._by_client.get(client, {})
        newest = reversed(list(mine)[-count:])
        return tuple(self._jobs[job] for job in newest)

    def on_node(self, node: NodeId) -> tuple[Job, ...]:
        """Jobs whose attempt a node has at work."""
        return tuple(self._jobs[job] for job in self._by_node.get(node, ()))

    def active(self, node: NodeId) -> int:
        """How many attempts a node has at work."""
        return len(self._by_node.get(node, ()))

    def live(self) -> tuple[Job, ...]:
        """Jobs that have not ended."""
        return tuple(self._jobs[job] for job in self._live)

    def live_count(self, client: NodeId | None = None) -> int:
        """How many jobs have not ended, of all clients or of one."""
        return len(self._live) if client is None else self._live_by_client.get(client, 0)

    def oldest_ended_ms(self) -> int | None:
        """When the first of the ended jobs ended."""
        return self._ended[0][0] if self._ended else None

    def apply(self, record: JobRecord) -> Job:
        """Change one job as a record says, and return it as it is then."""
        if isinstance(record, JobAdmitted):
            job = _admit(record)
            assert job.job not in self._jobs
            self._insert(job)
            return job
        before = self._jobs[record.job]
        after = self._change(before, record)
        self._jobs[after.job] = after
        self._reindex(before, after)
        return after

    def forget(self, record: JobsForgotten) -> tuple[JobId, ...]:
        """Drop what ended before a moment; returns the answers of which no job is left."""
        gone = []
        while self._ended and self._ended[0][0] < record.before_ms:
            job = self._jobs.pop(heappop(self._ended)[1])
            mine = self._by_client[job.client]
            del mine[job.job]
            if not mine:
                del self._by_client[job.client]
            del self._by_key[job.client, job.key]
            self._by_root[job.root] -= 1
            if not self._by_root[job.root]:
                del self._by_root[job.root]
                gone.append(job.root)
        return tuple(gone)

    def _change(self, job: Job, record: JobRecord) -> Job:
        match record:
            case JobAssigned():
                assert job.state is JobState.ADMITTED
                assert record.attempt == job.attempt + 1
                assert record.fence > self.last_fence
                self.last_fence = record.fence
                return replace(
                    job,
                    state=JobState.ASSIGNED,
                    attempt=record.attempt,
                    fence=record.fence,
                    node=record.node,
                    assigned_ms=record.at_ms,
                    assignment=record.assignment,
                    tried=(*job.tried, record.node),
                )
            case AttemptAccepted():
                _require(job, record.attempt, record.fence, JobState.ASSIGNED)
                return replace(job, state=JobState.RUNNING)
            case AttemptEnded():
                _require(job, record.attempt, record.fence, JobState.ASSIGNED, JobState.RUNNING)
                return replace(job, state=JobState.ADMITTED)
            case JobEnded():
                assert not job.state.terminal
                ended = _end(job, record.state, record.at_ms, record.code, record.message)
                return replace(ended, tokens=record.tokens)
            case AttemptSettled():
                return _settle(job, record)
            case EvidenceKept():
                receipt = job.receipt or record.kind == "client_receipt"
                return replace(job, evidence=job.evidence + 1, receipt=receipt)
            case _:
                raise TypeError(f"{type(record).__name__} changes no job")

    def _insert(self, job: Job) -> None:
        self._jobs[job.job] = job
        self._by_client.setdefault(job.client, {})[job.job] = None
        self._by_key[job.client, job.key] = job.job
        self._by_root[job.root] = self._by_root.get(job.root, 0) + 1
        if not job.state.terminal:
            self._live[job.job] = None
            self._live_by_client[job.client] = self._live_by_client.get(job.client, 0) + 1
        if job.at_work:
            self._by_node.setdefault(job.node, {})[job.job] = None

    def _reindex(self, before: Job, after: Job) -> None:
        if before.at_work and not after.at_work:
            there = self._by_node[before.node]
            del there[before.job]
            if not there:
                del self._by_node[before.node]
        if after.at_work and not before.at_work:
            self._by_node.setdefault(after.node, {})[after.job] = None
        if after.state.terminal and not before.state.terminal:
            del self._live[after.job]
            self._live_by_client[after.client] -= 1
            if not self._live_by_client[after.client]:
                del self._live_by_client[after.client]
            heappush(self._ended, (after.ended_ms, after.job))


def _admit(record: JobAdmitted) -> Job:
    return Job(
        job=record.job,
        client=record.client,
        key=record.key,
        model_profile=record.model_profile,
        admitted_ms=record.at_ms,
        timeout_ms=record.timeout_ms,
        max_tokens=record.max_tokens,
        body_bytes=record.body_bytes,
        start_position=record.start_position,
        root=record.root,
        candidates=record.candidates,
        terms=record.terms,
    )


def _require(job: Job, attempt: int, fence: int, *states: JobState) -> None:
    assert (job.attempt, job.fence) == (attempt, fence)
    assert job.state in states


def _end(job: Job, state: JobState, at_ms: int, code: str = "", message: str = "") -> Job:
    """A terminal job, without what only a job at work needs."""
    return replace(
        job,
        state=state,
        ended_ms=at_ms,
        code=code,
        message=message,
        terms=None,
        assignment=None,
        candidates=(),
    )


def _settle(job: Job, record: AttemptSettled) -> Job:
    """The job's one settlement: it ends the job, or it pays a part of a job that ended so."""
    assert not job.settled
    assert (job.attempt, job.fence) == (record.attempt, record.fence)
    if record.outcome is JobState.SETTLED:
        assert job.at_work
        job = _end(job, JobState.SETTLED, record.at_ms)
    assert job.state is record.outcome
    return replace(job, settled=True, tokens=record.completion_tokens)
