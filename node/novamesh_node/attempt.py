"""Which attempt of which job: the key under which a node knows its work.

A job may come to a node more than once; only the three together name one piece of work, one
keystream and one chain. Nothing else lives here.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from novamesh_proto.messages import JobId, MessageId


@dataclass(frozen=True, slots=True)
class AttemptKey:
    """One attempt of one job under one fence."""

    job: JobId
    attempt: int
    fence: int

    @property
    def name(self) -> str:
        """What logs and the engine call it; it says nothing about the job's content."""
        return f"{self.job.hex()[:12]}.{self.attempt}.{self.fence}"

    @property
    def digest(self) -> MessageId:
        """32 bytes to remember it by: the same attempt never runs twice under one keystream."""
        numbers = self.attempt.to_bytes(8, "big") + self.fence.to_bytes(8, "big")
        return MessageId(hashlib.sha256(self.job + numbers).digest())
