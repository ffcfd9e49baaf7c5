"""What must hold in any pool's log, whatever happened to it: one pass over the records.

Rules: a job is admitted once and ends once; every position of an answer is paid at most once, and
none that neither relay nor client saw; what was settled rests on statements that verify, each of
exactly that attempt. Pure: it finds and tells, and mends nothing. Used by `novamesh coordinator
check` and after every simulated run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from novamesh_coordinator.events import (
    AttemptSettled,
    JobAdmitted,
    JobEnded,
    Record,
)
from novamesh_proto import envelope
from novamesh_proto.envelope import Verified
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import (
    ChunkCheckpoint,
    ClientReceipt,
    InferenceAttestation,
    JobId,
    JobState,
    JobTerms,
    NodeId,
    RelayReceipt,
    Settlement,
    StreamAck,
)
from novamesh_proto.names import payload_type

_ATTESTATION = payload_type("InferenceAttestation")
_RECEIPT = payload_type("ClientReceipt")


@dataclass(slots=True)
class _Job:
    """What the log has said of a job so far."""

    root: JobId
    client: NodeId
    ends: int = 0


@dataclass(slots=True)
class Auditor:
    """Takes records in order; `coordinator` and `network` are whose log it is."""

    coordinator: NodeId
    network: str
    settlements: int = 0
    _jobs: dict[JobId, _Job] = field(default_factory=dict)
    _paid: dict[JobId, list[tuple[int, int]]] = field(default_factory=dict)

    @property
    def jobs(self) -> int:
        """Jobs that were ever admitted."""
        return len(self._jobs)

    def live(self) -> tuple[JobId, ...]:
        """Jobs that have not ended."""
        return tuple(name for name, job in self._jobs.items() if not job.ends)

    def take(self, record: Record) -> Iterator[str]:
        """What is wrong with the next record, in sentences."""
        match record:
            case JobAdmitted():
                yield from self._admit(record)
            case JobEnded():
                yield from self._end(record.job)
            case AttemptSettled():
                if record.outcome is JobState.SETTLED:
                    yield from self._end(record.job)
                yield from self._settle(record)
            case _:
                return

    def _admit(self, record: JobAdmitted) -> Iterator[str]:
        if record.job in self._jobs:
            yield f"{_name(record.job)} was admitted twice"
        try:
            terms = envelope.open(record.terms, JobTerms, network=self.network)
        except NovaMeshError as error:
            yield f"the terms of {_name(record.job)} do not verify: {error.message}"
            return
        if JobId(terms.id) != record.job or terms.issuer != record.client:
            yield f"{_name(record.job)} is filed under other terms or another client"
        self._jobs[record.job] = _Job(record.root, record.client)

    def _end(self, name: JobId) -> Iterator[str]:
        job = self._jobs.get(name)
        if job is None:
            yield f"{_name(name)} ended and was never admitted"
            return
        job.ends += 1
        if job.ends > 1:
            yield f"{_name(name)} ended {job.ends} times"

    def _settle(self, record: AttemptSettled) -> Iterator[str]:
        self.settlements += 1
        job = self._jobs.get(record.job)
        if job is None:
            yield f"{_name(record.job)} was settled and never admitted"
            return
        try:
            yield from self._check(record, job)
        except NovaMeshError as error:
            yield f"what {_name(record.job)} was settled by does not verify: {error.message}"
        start, end = record.start_position, record.start_position + record.completion_tokens
        spans = self._paid.setdefault(job.root, [])
        if any(start < other_end and other < end for other, other_end in spans):
            yield f"positions of {_name(record.job)} were paid twice"
        if start < end:
            spans.append((start, end))

    def _check(self, record: AttemptSettled, job: _Job) -> Iterator[str]:
        attempt = (record.job, record.attempt, record.fence)
        claim = self._claim(record)
        seen = self._seen(record)
        paid = envelope.open(record.settlement, Settlement, network=self.network)
        said, watched, given = claim.message, seen.message, paid.message
        if claim.issuer != record.node or (said.job, said.attempt, said.fence) != attempt:
            yield f"{_name(record.job)} was settled by a claim of something else"
        witness = self.coordinator if record.relay_receipt is not None else job.client
        if (seen.issuer, paid.issuer) != (witness, self.coordinator):
            yield f"the settlement of {_name(record.job)} was not signed by this coordinator"
        if (watched.job, watched.attempt, watched.fence) != attempt:
            yield f"{_name(record.job)} was settled by a relay receipt of something else"
        same = (given.job, given.attempt, given.fence) == attempt and given.client == job.client
        amounts = (given.start_position, given.completion_tokens, given.prompt_tokens)
        booked = (record.start_position, record.completion_tokens, record.prompt_tokens)
        if not same or amounts != booked:
            yield f"the settlement of {_name(record.job)} says something else than the log"
        witnessed = _tokens(watched, record.start_position)
        if record.completion_tokens > witnessed:
            yield (
                f"{record.completion_tokens} tokens of {_name(record.job)} were paid, "
                f"{witnessed} were {'relayed' if record.relay_receipt else 'received'}"
            )

    def _seen(self, record: AttemptSettled) -> Verified[Any]:
        """Relay's or client's word for what arrived."""
        if record.relay_receipt is not None:
            return envelope.open(record.relay_receipt, RelayReceipt, network=self.network)
        if record.witness is None:
            raise NovaMeshError(Code.CORRUPT, "nobody saw it")
        kind = ClientReceipt if record.witness.payload_type == _RECEIPT else StreamAck
        opened: Verified[Any] = envelope.open(record.witness, kind, network=self.network)
        return opened

    def _claim(
        self, record: AttemptSettled
    ) -> envelope.Verified[InferenceAttestation] | envelope.Verified[ChunkCheckpoint]:
        if record.claim.payload_type == _ATTESTATION:
            return envelope.open(record.claim, InferenceAttestation, network=self.network)
        return envelope.open(record.claim, ChunkCheckpoint, network=self.network)


def _tokens(seen: RelayReceipt | ClientReceipt | StreamAck, start: int) -> int:
    """Tokens of this part that somebody saw; an ack counts positions."""
    if isinstance(seen, RelayReceipt):
        return seen.tokens
    return seen.completion_tokens if isinstance(seen, ClientReceipt) else seen.position - start


def _name(job: JobId) -> str:
    return f"job {job.hex()[:12]}"
