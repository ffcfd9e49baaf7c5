"""What one watcher is still to be told of a job. Pure: views and streams in, events out.

Rules: nothing of an attempt is told before the coordinator's word for it is durable, which is when
its view says so; chunks come in order, each once; what the client holds already is left out.
"""

from __future__ import annotations

from collections.abc import Iterator

from novamesh_coordinator.relay import Stream
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import JobState, JobView, WatchQuery, WatchResponse


class Follower:
    """A watcher's place in a job's events."""

    def __init__(self, query: WatchQuery) -> None:
        self._query = query
        self._told: tuple[JobState, int] | None = None
        self._attempt = 0
        self._next_item = 0

    def read(self, view: JobView, stream: Stream | None) -> Iterator[WatchResponse]:
        """Events that are new since the last call; a terminal view is left to the caller.

        Raises:
            NovaMeshError: STALE if the buffer has lost what this watcher still wants.
        """
        now = (view.state, view.attempt)
        if now != self._told and not view.state.terminal:
            self._told = now
            yield WatchResponse(job=view)
        if stream is None or stream.assignment.message.attempt != view.attempt:
            return
        if self._attempt != view.attempt:
            self._attempt = view.attempt
            self._next_item = self._begin(stream)
            if self._next_item > 0 or stream.first_item > 0:
                yield WatchResponse(assignment=stream.assignment.envelope)
        yield from self._items(stream)

    def _begin(self, stream: Stream) -> int:
        """Number of the first item to tell of an attempt that is new to this watcher."""
        resumed = self._query.attempt == self._attempt
        return stream.first_wanted(self._query.from_chunk) if resumed else 0

    def _items(self, stream: Stream) -> Iterator[WatchResponse]:
        # The stream may grow while the caller sends; what came since is told too.
        while self._next_item < stream.end:
            if self._next_item < stream.first_item:
                raise NovaMeshError(
                    Code.STALE,
                    "the buffer no longer holds the next chunks of this answer",
                    "run the job again, and read faster",
                )
            item = stream.items[self._next_item - stream.first_item]
            self._next_item += 1
            if item.chunk is not None and self._held(item.chunk.index):
                continue
            yield item

    def _held(self, index: int) -> bool:
        return self._query.attempt == self._attempt and index < self._query.from_chunk
