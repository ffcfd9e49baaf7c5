"""Values of ledger.proto: where a job is and what is settled."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated

from novamesh_proto.limits import EVIDENCE_MAX, Size
from novamesh_proto.messages.envelope import Digest, Header, JobIdField, NodeIdField, ProfileField
from novamesh_proto.messages.job import Attempt, Position


class JobState(IntEnum):
    """Where a job is; the last four are terminal and a job reaches exactly one of them."""

    UNSPECIFIED = 0
    ADMITTED = 1
    ASSIGNED = 2
    RUNNING = 3
    SETTLED = 4
    FAILED = 5
    EXPIRED = 6
    CANCELLED = 7

    @property
    def terminal(self) -> bool:
        """Whether the job has ended."""
        return self >= JobState.SETTLED


@dataclass(frozen=True, slots=True)
class Settlement:
    """Who did how much of what for whom: one minimal record a job part."""

    header: Header
    job: JobIdField
    attempt: Attempt
    fence: int
    client: NodeIdField
    node: NodeIdField
    model_profile: ProfileField
    start_position: Position
    prompt_tokens: Position
    completion_tokens: Position
    outcome: JobState
    evidence: Annotated[tuple[Digest, ...], Size(0, EVIDENCE_MAX)] = ()
