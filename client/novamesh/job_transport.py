"""What a session needs of whoever carries one submitted job: its events in, its orders out.

Rules: the messages are the same signed and sealed ones on every path, so a transport vouches for
nothing; each call raises NovaMeshError and ends within the transport's own deadline. Matching and
signing are a pool's business, who also is a transport: `pool.PoolConnection` through the
coordinator, `mesh_pool.MeshPool` without it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol

from novamesh_proto.errors import NovaMeshError
from novamesh_proto.identity import PrivateKey
from novamesh_proto.messages import (
    Candidate,
    Envelope,
    Header,
    JobId,
    JobPath,
    JobView,
    NodeId,
    PoolModel,
    ProfileDigest,
    SealedJob,
    WatchResponse,
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What candidates are asked for."""

    model_profile: ProfileDigest
    prompt_bytes: int
    max_tokens: int
    excluded: tuple[NodeId, ...] = ()


class JobTransport(Protocol):
    """A path on which one job is handed in, followed and stopped."""

    @property
    def path(self) -> JobPath:
        """Which way the newest chunk came."""
        ...

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


class JobPool(JobTransport, Protocol):
    """Who is asked for nodes, and takes the job for the one that it or the client chooses.

    `key` is the client's, `network` the pool's name.
    """

    key: PrivateKey
    network: str

    @property
    def rtt_s(self) -> float | None:
        """Round trip to whoever is asked, seconds; None before the first."""
        ...

    @property
    def coordinator(self) -> NodeId:
        """Who assigns the work."""
        ...

    async def find_model(self, text: str) -> PoolModel:
        """The one model that is served and that a text means. Raises as `choose_model`."""
        ...

    async def aim(self, wanted: Wanted) -> None:
        """Get ready for a job like this one, before its terms name anybody."""
        ...

    def may_try_again(self, error: NovaMeshError) -> bool | float:
        """Whether the same terms are handed in again, or after how many seconds."""
        ...

    def may_ask_another(self, error: NovaMeshError) -> bool:
        """Whether a job that was refused so, and not taken, may be drafted for somebody else."""
        ...

    def header(self, *others: NodeId, life_ms: int = 60_000, in_reply_to: bytes = b"") -> Header:
        """A header of the client's to whoever admits the job."""
        ...

    async def match(self, wanted: Wanted) -> tuple[Candidate, ...]:
        """Candidates for a job, best first."""
        ...
