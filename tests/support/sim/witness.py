"""Somebody at the pool's door who sees every message, both ways, and knows what is on its disk.

Nothing leaves before it is written down: what the pool tells of jobs, attempts and payments is in
the log by then. No prompt and no answer is ever readable there. No chunk key is used for two texts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any, Final

from novamesh_proto.messages import JobState
from novamesh_proto.v1 import coordinator_pb2 as pb
from novamesh_proto.v1 import node_pb2
from support.fake_engine import FIRST_TOKEN
from support.parties import party
from support.sim.disk import Disk

SECRET: Final = "hush: "
"""Every prompt begins so; each character costs a step of simulated prefill."""
PLAIN: Final = (SECRET.encode(), f"<{FIRST_TOKEN}>".encode())  # a prompt, an answer
_LOGGED: Final = ("assignment", "attestation", "relay_receipt", "settlement")


class Witness:
    """`find` takes sentences for what is wrong; `honest` knows who lies."""

    def __init__(
        self, disk: Disk, honest: Callable[[str], bool], find: Callable[[str], None]
    ) -> None:
        self._disk = disk
        self._honest = honest
        self._find = find
        self._chunks: dict[tuple[object, ...], bytes] = {}

    def hear(self, caller: str, data: bytes, message: Any) -> None:
        """Somebody says this to the pool."""
        self._look(f"{caller} says", data)
        if isinstance(message, node_pb2.AttachRequest) and message.HasField("chunk"):
            self._compare(caller, message.chunk)

    def tell(self, caller: str, data: bytes, message: Any) -> None:
        """The pool says this to somebody."""
        self._look(f"pool tells {caller}", data)
        for what, known in _told(message):
            if known not in self._disk.known:
                self._find(f"pool tells {caller} of {what} that is not on its disk")
        if isinstance(message, pb.JoinResponse) and party(caller).node_id not in self._disk.known:
            self._find(f"pool tells {caller} of a membership that is not on its disk")

    def _look(self, who: str, data: bytes) -> None:
        if any(plain in data for plain in PLAIN):
            self._find(f"{who} something that everybody can read")

    def _compare(self, caller: str, came: Any) -> None:
        chunk = came.chunk
        place = (caller, came.job, came.attempt, came.fence, chunk.index)
        text = hashlib.sha256(chunk.ciphertext).digest()
        if self._honest(caller) and self._chunks.setdefault(place, text) != text:
            self._find(f"{caller} used one chunk key twice")


def _told(message: Any) -> Iterable[tuple[str, bytes]]:
    """What a message speaks of, and how the disk knows it."""
    if isinstance(message, node_pb2.AttachResponse) and message.HasField("assignment"):
        yield "an attempt", message.assignment.assignment.payload
    if isinstance(message, pb.WatchResponse):
        kind = message.WhichOneof("kind")
        if kind in _LOGGED:
            yield f"a {kind}", getattr(message, kind).payload
    if isinstance(message, pb.SubmitResponse | pb.CancelResponse | pb.GetJobResponse) or (
        isinstance(message, pb.WatchResponse) and message.HasField("job")
    ):
        yield from _viewed(message.job)


def _viewed(view: Any) -> Iterable[tuple[str, bytes]]:
    yield "a job", view.job
    if JobState(view.state).terminal:
        yield "an end", b"ended" + view.job
