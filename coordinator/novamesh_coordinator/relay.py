"""Sealed chunks on their way from a node to a client: bounded buffers, read by position.

A stream is one attempt. The relay follows the attempt's hash chain over the ciphertexts, so that it
can say what it saw, and keeps the items (assignment, chunks, checkpoints) for whoever follows the
job, now or again later. It has no key and reads nothing. Where the client follows its node itself,
chunks do not come here: what both sign of the chain is kept in their place. Nothing is logged:
after a restart the node sends the attempt from its first chunk again. Times are ticks, µs.

Bounds: STREAM_BYTES_MAX a stream, then its oldest items go; RELAY_BYTES_MAX in all, then ended
streams go, oldest first.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from novamesh_proto.envelope import Verified
from novamesh_proto.errors import Code, PeerError
from novamesh_proto.identity import format_node_id
from novamesh_proto.limits import MIB
from novamesh_proto.messages import (
    ChunkCheckpoint,
    ClientReceipt,
    Envelope,
    InferenceAttestation,
    JobAssignment,
    JobId,
    StreamAck,
    StreamChunk,
    WatchResponse,
)
from novamesh_proto.sealing import ChainFollower

STREAM_BYTES_MAX: Final = 8 * MIB
RELAY_BYTES_MAX: Final = 256 * MIB
_ITEM_BYTES: Final = 160  # what an item costs besides its payload
_MARK_BYTES: Final = 224  # what is remembered of a chunk for as long as its stream is


@dataclass(frozen=True, slots=True)
class Mark:
    """The chain after some chunks; `item` and `at_us` are of the last of them."""

    item: int
    at_us: int
    tokens: int
    head: bytes


@dataclass(slots=True)
class Stream:
    """One attempt as its relay sees it.

    `items[0]` is item number `first_item`; `marks[n]` is the chain after n chunks.
    """

    assignment: Verified[JobAssignment]
    chain: ChainFollower
    sent_us: int
    rtt_us: int
    first_us: int = 0
    last_us: int = 0
    items: list[WatchResponse] = field(default_factory=list)
    first_item: int = 0
    marks: list[Mark] = field(init=False)
    tail: list[WatchResponse] = field(default_factory=list)
    checkpoint: Verified[ChunkCheckpoint] | None = None
    ahead: Verified[ChunkCheckpoint] | None = None  # of chunks that went to the client directly
    ack: Verified[StreamAck] | None = None
    receipt: Verified[ClientReceipt] | None = None
    bytes: int = 0
    prompt_tokens_done: int = 0
    resumed: bool = False  # begun before this process, which cannot know what was passed on

    def __post_init__(self) -> None:
        self.marks = [Mark(0, 0, 0, self.chain.head)]

    @property
    def started(self) -> bool:
        """Whether the client may hold a part of the answer already."""
        return self.resumed or self.chain.chunks > 0 or self.direct

    @property
    def direct(self) -> bool:
        """Whether chunks went to the client by another way, so that its word stands for ours."""
        seen = [point.message.chunks for point in (self.ahead, self.ack, self.receipt) if point]
        return max(seen, default=0) > self.chain.chunks

    @property
    def signed(self) -> Verified[ChunkCheckpoint] | None:
        """The furthest place on its chain that the node has committed to."""
        return self.ahead if self.direct and self.ahead is not None else self.checkpoint

    @property
    def end(self) -> int:
        """Number of the item that comes next."""
        return self.first_item + len(self.items)

    def first_wanted(self, from_chunk: int) -> int:
        """Number of the first item for somebody who holds the chunks before `from_chunk`."""
        if from_chunk <= 0:
            return 0
        if from_chunk < self.chain.chunks:
            return self.marks[from_chunk + 1].item
        return self.end

    def arrivals(self) -> list[tuple[int, int]]:
        """When how many tokens came: (µs after the assignment, tokens)."""
        pairs = pairwise(self.marks)
        return [(mark.at_us, mark.tokens - before.tokens) for before, mark in pairs]

    def holds(self, point: ChunkCheckpoint, start_position: int) -> bool:
        """Whether a checkpoint commits to the chain that came here."""
        if point.chunks > self.chain.chunks:
            return False
        mark = self.marks[point.chunks]
        return (point.chain_head, point.position) == (mark.head, start_position + mark.tokens)

    def vouched(self, claim: InferenceAttestation) -> bool:
        """Whether the client signed for the whole chain that a claim names."""
        whole = (claim.chunks, claim.chain_head)
        signed = [one.message for one in (self.ack, self.receipt) if one is not None]
        return any((one.chunks, one.chain_head) == whole for one in signed)

    def catch_up(self, start_position: int) -> None:
        """Hold what the node committed to ahead of us against the chain, once it is here.

        Raises:
            PeerError: CORRUPT if it committed to another one.
        """
        ahead = self.ahead
        if ahead is None or ahead.message.chunks > self.chain.chunks:
            return
        if not self.holds(ahead.message, start_position):
            raise PeerError(
                Code.CORRUPT,
                "its checkpoint names another chain than the relay saw",
                format_node_id(ahead.issuer),
            )
        self.checkpoint, self.ahead = ahead, None

    def append(self, item: WatchResponse, payload_bytes: int) -> None:
        """Keep one more item."""
        self.items.append(item)
        self.bytes += payload_bytes + _ITEM_BYTES


class Relay:
    """The newest stream of every job that is at work or ended lately."""

    def __init__(self, stream_bytes_max: int = STREAM_BYTES_MAX) -> None:
        self._streams: dict[JobId, Stream] = {}
        self._ended: dict[JobId, None] = {}  # in the order they ended
        self._stream_bytes_max = stream_bytes_max
        self.bytes = 0
        self.chunks_relayed = 0

    def __len__(self) -> int:
        return len(self._streams)

    def get(self, job: JobId) -> Stream | None:
        """The stream of a job's newest attempt."""
        return self._streams.get(job)

    def open(
        self,
        assignment: Verified[JobAssignment],
        sent_us: int,
        rtt_us: int,
        resumed: bool = False,
    ) -> Stream:
        """An attempt begins, or goes on after a restart; what an earlier one left is gone."""
        given = assignment.message
        self.drop(given.job)
        chain = ChainFollower(given.job, given.attempt, given.fence, given.node)
        stream = Stream(assignment, chain, sent_us, rtt_us, resumed=resumed)
        self._streams[given.job] = stream
        self._keep(stream, WatchResponse(assignment=assignment.envelope), 512)
        return stream

    def take_up(self, job: JobId, fence: int) -> bool:
        """Go on with the stream of an attempt whose end was never committed; False if none."""
        stream = self._streams.get(job)
        if stream is None or stream.assignment.message.fence != fence:
            return False
        self._ended.pop(job, None)
        stream.tail.clear()
        return True

    def add_chunk(self, job: JobId, chunk: StreamChunk, now_us: int) -> None:
        """Take the next chunk of a job's stream.

        Raises:
            PeerError: CORRUPT if it is not the next one.
        """
        stream = self._streams[job]
        stream.chain.follow(chunk)
        stream.last_us = max(0, now_us - stream.sent_us)
        if chunk.index == 0:
            stream.first_us = stream.last_us
        chain = stream.chain
        stream.marks.append(Mark(stream.end, stream.last_us, chain.tokens, chain.head))
        self.chunks_relayed += 1
        self.bytes += _MARK_BYTES
        self._keep(stream, WatchResponse(chunk=chunk), len(chunk.ciphertext))

    def add_checkpoint(self, job: JobId, checkpoint: Verified[ChunkCheckpoint]) -> None:
        """Keep and pass on what the node commits to."""
        stream = self._streams[job]
        stream.checkpoint = checkpoint
        self._keep(stream, WatchResponse(checkpoint=checkpoint.envelope), 512)

    def add_tail(self, job: JobId, **envelopes: Envelope) -> None:
        """Attestation, relay receipt, settlement: what follows the chunks."""
        stream = self._streams[job]
        for name, envelope in envelopes.items():
            stream.tail.append(WatchResponse(**{name: envelope}))  # type: ignore[arg-type]

    def end(self, job: JobId) -> None:
        """The job ended; its stream may go when room is needed."""
        if job in self._streams:
            self._ended[job] = None

    def drop(self, job: JobId) -> None:
        """Forget a job's stream."""
        self._ended.pop(job, None)
        stream = self._streams.pop(job, None)
        if stream is not None:
            self.bytes -= stream.bytes + _MARK_BYTES * stream.chain.chunks

    def _keep(self, stream: Stream, item: WatchResponse, payload_bytes: int) -> None:
        before = stream.bytes
        stream.append(item, payload_bytes)
        if stream.bytes > self._stream_bytes_max:
            self._shorten(stream)
        self.bytes += stream.bytes - before
        while self.bytes > RELAY_BYTES_MAX and self._ended:
            self.drop(next(iter(self._ended)))

    @staticmethod
    def _shorten(stream: Stream) -> None:
        """The older half of the items goes; a reader that far behind is told."""
        gone = max(1, len(stream.items) // 2)
        for item in stream.items[:gone]:
            payload = len(item.chunk.ciphertext) if item.chunk else 512
            stream.bytes -= payload + _ITEM_BYTES
        del stream.items[:gone]
        stream.first_item += gone
