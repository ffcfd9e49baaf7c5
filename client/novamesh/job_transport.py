"""What a session needs of whoever carries one submitted job: its events in, its orders out.

Rules: the messages are the same signed and sealed ones on every path, so a transport vouches for
nothing; each call raises NovaMeshError and ends within the transport's own deadline. Matching and
signing are no business of a transport. `pool.PoolConnection` is one: through the coordinator.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

from novamesh_proto.messages import (
    Envelope,
    JobId,
    JobPath,
    JobView,
    SealedJob,
    WatchResponse,
)


class JobTransport(Protocol):
    """A path on which one job is handed in, followed and stopped."""

    path: JobPath  # which way the newest chunk came

    async def submit(self, job: SealedJob, reservations: Sequence[bytes]) -> JobView:
        """Hand in a sealed job; the same terms are the same job, however often they are sent."""
        ...

    def watch(self, job: JobId, attempt: int, from_chunk: int) -> AsyncGenerator[WatchResponse]:
        """The events of a job until its end, after those that `attempt` and `from_chunk` name.

        What cannot be reached for now is UNAVAILABLE, and is watched again; a transport that knows
        the node to be gone raises NODE_LOST, and the answer goes on elsewhere at once.
        """
        ...

    async def acknowledge(self, ack: Envelope) -> None:
        """Pass a StreamAck on to the node."""
        ...

    async def submit_receipt(self, receipt: Envelope) -> None:
        """Hand in a ClientReceipt."""
        ...

    async def cancel(self, job: JobId) -> JobView:
        """Stop a job; its state afterwards."""
        ...

    async def get_job(self, job: JobId) -> JobView:
        """Where a job is."""
        ...
