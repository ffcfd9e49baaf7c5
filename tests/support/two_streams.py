"""A pool and a node in memory that both tell of one answer: who says what when is scripted.

Chunks that the node gave to its client itself are not relayed, as by a real node; when its client
leaves, the relay brings them all.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

from novamesh_proto.envelope import Verified
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import (
    Envelope,
    JobId,
    JobPath,
    JobView,
    NodeDescriptor,
    NodeId,
    SealedJob,
    WatchResponse,
)
from support.answers import SentAnswer

NEVER = 10**6


@dataclass
class Pauses:
    """How often a stream lets others run before its next event; the last number repeats."""

    counts: tuple[int, ...] = (0,)
    taken: int = 0

    async def take(self) -> None:
        count = self.counts[min(self.taken, len(self.counts) - 1)]
        self.taken += 1
        for _ in range(count):
            await asyncio.sleep(0)


@dataclass
class FakeRelay:
    """The coordinator's end; `breaks` are events after which its streams break, each once."""

    sent: SentAnswer
    node: FakeNode
    breaks: list[int] = field(default_factory=list)
    pauses: Pauses = field(default_factory=lambda: Pauses((0, 8)))  # the longer way
    watched: list[tuple[int, int]] = field(default_factory=list)
    acks: list[Envelope] = field(default_factory=list)
    receipts: list[Envelope] = field(default_factory=list)
    silent: bool = False  # it tells no more than who works, and answers no ack
    path = JobPath.RELAYED

    async def watch(
        self, job: JobId, attempt: int, from_chunk: int
    ) -> AsyncGenerator[WatchResponse]:
        self.watched.append((attempt, from_chunk))
        until = self.breaks.pop(0) if self.breaks else NEVER
        for number, event in enumerate(self.sent.events):
            await self.pauses.take()
            if self.silent and number:
                await asyncio.Event().wait()
            if number >= until:
                raise NovaMeshError(Code.UNAVAILABLE, "the coordinator is away")
            if event.chunk is not None or event.attestation is not None:
                await self.node.left()
            if event.chunk is not None and (self.node.told_all or event.chunk.index < from_chunk):
                continue
            yield event

    async def acknowledge(self, ack: Envelope) -> None:
        self.acks.append(ack)
        if self.silent:
            await asyncio.Event().wait()

    async def submit_receipt(self, receipt: Envelope) -> None:
        self.receipts.append(receipt)

    async def submit(self, job: SealedJob, reservations: Sequence[bytes]) -> JobView:
        raise AssertionError("a job that is followed was submitted before")

    async def cancel(self, job: JobId) -> JobView:
        return JobView(job, 6, 1, NodeId(b""), job, 0)  # type: ignore[arg-type]

    async def get_job(self, job: JobId) -> JobView:
        raise AssertionError("following asks nothing")


@dataclass
class FakeNode:
    """The node's end: a connection, its line, and whoever opens lines, in one."""

    sent: SentAnswer
    breaks: list[int] = field(default_factory=list)  # events after which a stream breaks
    refusals: list[NovaMeshError] = field(default_factory=list)  # of dialling, each once
    gone: bool = False  # nobody answers once the breaks are used up
    pauses: Pauses = field(default_factory=Pauses)
    open: int = 0  # streams
    told_all: bool = False
    dialed: list[bool] = field(default_factory=list)  # whether it was insisted
    dropped: int = 0
    acks: list[Envelope] = field(default_factory=list)
    receipts: list[Envelope] = field(default_factory=list)
    path: JobPath = JobPath.DIRECT
    rtt_s: float = 0.001
    tunnel: asyncio.Event | None = None  # it is hidden until there is one; None: it is not
    tunnels: int = 0  # asked for
    doubted: int = 0  # round trips that will be measured again
    hangs: asyncio.Event | None = None  # a stream stands still before its last event until then

    async def left(self) -> None:
        """Until nobody follows here, or all is told."""
        while self.open and not self.told_all:  # noqa: ASYNC110  order matters here, not time
            await asyncio.sleep(0)

    @property
    def connection(self) -> FakeNode:
        return self

    def doubt(self) -> None:
        self.doubted += 1

    async def open_line(self, descriptor: Verified[NodeDescriptor], insist: bool) -> FakeNode:
        self.dialed.append(insist)
        await asyncio.sleep(0)
        if self.refusals:
            raise self.refusals.pop(0)
        if self.tunnel is not None and not self.tunnel.is_set():
            raise NovaMeshError(Code.UNAVAILABLE, "it is behind its router")
        if self.gone and not self.breaks:
            raise NovaMeshError(Code.UNAVAILABLE, "nobody answers")
        return self

    async def watch(
        self, job: JobId, attempt: int, from_chunk: int
    ) -> AsyncGenerator[WatchResponse]:
        until = self.breaks.pop(0) if self.breaks else NEVER
        events = [
            event
            for event in self.sent.events
            if event.relay_receipt is None and event.settlement is None and event.job is None
        ]
        self.open += 1
        try:
            for number, event in enumerate(events):
                await self.pauses.take()
                if number >= until:
                    raise NovaMeshError(Code.UNAVAILABLE, "the node's line broke")
                if event.chunk is not None and event.chunk.index < from_chunk:
                    continue
                if event.attestation is not None:
                    if self.hangs is not None:
                        await self.hangs.wait()
                    self.told_all = True
                yield event
        finally:
            self.open -= 1

    async def acknowledge(self, ack: Envelope) -> None:
        self.acks.append(ack)

    async def submit_receipt(self, receipt: Envelope) -> None:
        self.receipts.append(receipt)


@dataclass
class FakeLines:
    """Who opens lines to the node."""

    node: FakeNode

    async def open(self, descriptor: Verified[NodeDescriptor], *, insist: bool = False) -> FakeNode:
        return await self.node.open_line(descriptor, insist)

    async def open_tunnel(self, descriptor: Verified[NodeDescriptor]) -> None:
        self.node.tunnels += 1
        if self.node.tunnel is None:
            raise NovaMeshError(Code.UNAVAILABLE, "no tunnel leads there")
        await self.node.tunnel.wait()
        self.node.path = JobPath.TUNNEL

    async def drop(self, node: NodeId, line: FakeNode) -> None:
        self.node.dropped += 1
