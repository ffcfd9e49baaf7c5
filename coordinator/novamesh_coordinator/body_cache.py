"""Sealed jobs at hand: what was just committed is not read from the disk to be sent.

Rules: a job's body is put here once, when it is durable, and never replaced; the oldest make room
within BYTES_MAX. The store is the only owner.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from novamesh_proto.limits import MIB
from novamesh_proto.messages import JobId

BYTES_MAX: Final = 64 * MIB


class BodyCache:
    """The newest bodies, within a number of bytes."""

    def __init__(self, bytes_max: int = BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._bodies: OrderedDict[JobId, bytes] = OrderedDict()
        self._bytes = 0

    def keep(self, job: JobId, body: bytes) -> None:
        """Keep the body of a new job."""
        self._bodies[job] = body
        self._bytes += len(body)
        while self._bytes > self._bytes_max:
            self.drop(next(iter(self._bodies)))

    def get(self, job: JobId) -> bytes | None:
        """A job's body, if it is still at hand."""
        return self._bodies.get(job)

    def drop(self, job: JobId) -> None:
        """Nobody will ask for it again."""
        self._bytes -= len(self._bodies.pop(job, b""))
