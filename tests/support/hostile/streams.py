"""Hostile messages on a node's Attach stream, and what each must come to.

truncated        bad_request     ends the stream
cut payload, forged, wrong audience, wrong network, expired, future, oversized: as at any method
duplicated       wrong_type      a second hello; anything else is an ordinary race, and noted
replayed         bad_signature   a hello answers one challenge; its message says so
reordered        wrong_type      anything before the hello; what is said of an attempt that is
                                 not at work is answered with "stop", and an older descriptor
                                 is noted: the stream goes on
swapped          forbidden       somebody else's descriptor or statement
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

from novamesh_proto import wire
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import (
    AttachHello,
    AttachRequest,
    AttemptChunk,
    ChunkCheckpoint,
    Envelope,
    FinishReason,
    Header,
    IdleQuery,
    InferenceAttestation,
    JobDecision,
    JobFailure,
    JobId,
    JobProgress,
    NodeDescriptor,
    NodeLoad,
    StreamChunk,
    Timing,
)
from novamesh_proto.v1 import node_pb2
from support.actors import NodeActor
from support.hostile.honest import now_ms
from support.hostile.twists import TWISTS, header, loose, twist
from support.memory_channel import AttachCall
from support.parties import COORDINATOR, HARDWARE, PROFILE

STATEMENTS: Final = ("decision", "checkpoint", "attestation", "failure", "descriptor")
STREAM_KINDS: Final = ("truncated", *TWISTS, "duplicated", "replayed", "reordered", "swapped")


@dataclass(frozen=True)
class Outcome:
    """What a stream came to, and what it had to come to; no code where it had to go on."""

    kind: str
    wanted: Code | None
    words: str
    got: NovaMeshError | None


class Saboteur:
    """A member that attaches as a node without any model, and says something wrong."""

    def __init__(self, name: str, channel: Any, key_digest: bytes, rng: random.Random) -> None:
        self._node = NodeActor(name, COORDINATOR.node_id)
        self._other = NodeActor("other " + name, COORDINATOR.node_id)
        self._channel = channel
        self._key_digest = key_digest
        self._rng = rng
        self._hello: bytes = b""  # of an earlier stream

    @property
    def claim(self) -> Envelope:
        """What it joins with."""
        return self._node.claim(now_ms())

    async def load_and_fire(self) -> Outcome:
        """One stream."""
        kind = self._rng.choice(STREAM_KINDS)
        self._node.sequence += 10
        self._node.advert = self._node.descriptor(now_ms(), models=())
        call = _RawCall(self._channel, self._node)
        try:
            return await self._fire(kind, call)
        finally:
            await call.close()

    async def _fire(self, kind: str, call: _RawCall) -> Outcome:
        challenge = (await call.read()).challenge
        assert challenge is not None
        right = self._make_hello(challenge.nonce)
        before = kind == "replayed" or (kind != "duplicated" and self._rng.random() < 0.3)
        if before:
            wrong, code, words = self._before(kind, right)
        else:
            await call.stream.write(self._as_hello(self._node.sign(right(self._head()))))
            assert (await call.read()).welcome is not None
            wrong, code, words = self._after(kind, right)
        for data in wrong:
            await call.stream.write(data)
        if code is None:
            await call.stream.write(wire.encode(AttachRequest(idle_query=IdleQuery())))
        return Outcome(kind, code, words, await _end(call))

    def _before(
        self, kind: str, right: Callable[[Header], AttachHello]
    ) -> tuple[list[bytes], Code | None, str]:
        """In the place of a right hello."""
        head = self._head()
        hello = self._as_hello(self._node.sign(right(head)))
        earlier, self._hello = self._hello, hello
        if kind == "truncated":
            return [hello[: self._rng.randrange(1, 200)]], Code.BAD_REQUEST, "not the message"
        if kind in TWISTS:
            wrong = twist(kind, self._node, right, self._rng)
            return [self._as_hello(wrong.sealed)], wrong.code, wrong.words
        if kind == "replayed":
            stale = earlier or self._as_hello(self._node.sign(self._make_hello(bytes(32))(head)))
            return [stale], Code.BAD_SIGNATURE, "another challenge"
        if kind == "swapped":
            stolen = replace(right(head), descriptor=self._other.descriptor(now_ms()))
            return [self._as_hello(self._node.sign(stolen))], Code.FORBIDDEN, "another node"
        early = AttachRequest(load=NodeLoad(1, True))
        return [wire.encode(early)], Code.WRONG_TYPE, "begins with a hello"

    def _after(
        self, kind: str, right: Callable[[Header], AttachHello]
    ) -> tuple[list[bytes], Code | None, str]:
        """On a stream that is open."""
        name = self._rng.choice(STATEMENTS)
        if name == "descriptor" and kind == "wrong audience":
            name = "decision"  # a descriptor is for everybody
        whole = self._as(name, self._node.sign(self._make(name)(self._head())))
        if kind == "truncated":
            return [whole[: self._rng.randrange(1, 200)]], Code.BAD_REQUEST, "not the message"
        if kind in TWISTS:
            wrong = twist(kind, self._node, self._make(name), self._rng)
            return [self._as(name, wrong.sealed)], wrong.code, wrong.words
        if kind == "swapped":
            sealed = self._other.sign(self._make(name, self._other)(self._head(self._other)))
            words = "another node" if name == "descriptor" else "was signed by"
            return [self._as(name, sealed)], Code.FORBIDDEN, words
        if kind == "reordered":
            return self._unexpected(), None, ""
        if self._rng.random() < 0.5:
            again = self._as_hello(self._node.sign(right(self._head())))
            return [again], Code.WRONG_TYPE, "one hello"
        return [whole, whole], None, ""

    def _unexpected(self) -> list[bytes]:
        """About attempts that are not at work, and a descriptor older than the one known."""
        job = JobId(self._rng.randbytes(32))
        chunk = StreamChunk(7, 1, True, bytes(32))
        older = self._node.descriptor(now_ms(), models=(), sequence=1)
        return [
            wire.encode(AttachRequest(chunk=AttemptChunk(job, 1, 1, chunk))),
            wire.encode(AttachRequest(progress=JobProgress(job, 1, 1, 5))),
            self._as("descriptor", older),
        ]

    def _head(self, who: NodeActor | None = None) -> Header:
        return header(who or self._node, self._rng)

    def _make_hello(self, nonce: bytes) -> Callable[[Header], AttachHello]:
        advert = self._node.advert
        assert advert is not None
        return lambda head: AttachHello(head, nonce, self._key_digest, advert)

    def _make(self, name: str, who: NodeActor | None = None) -> Callable[[Header], Any]:
        job, speaker = JobId(self._rng.randbytes(32)), who or self._node
        ids = (job, 1, 1)
        if name == "decision":
            return lambda head: JobDecision(head, *ids, accepted=True)
        if name == "checkpoint":
            return lambda head: ChunkCheckpoint(head, *ids, 1, 1, bytes(32))
        if name == "failure":
            return lambda head: JobFailure(head, *ids, code="internal", message="oh")
        if name == "attestation":
            return lambda head: InferenceAttestation(
                head, *ids, PROFILE, "0.1.0", bytes(32), bytes(32), bytes(32), 1, 0, 20, 1,
                FinishReason.STOP, Timing(1, 1, 1, 2, 3), HARDWARE,
            )  # fmt: skip
        return lambda head: NodeDescriptor(
            head, speaker.sequence, speaker.hpke.public, (), HARDWARE, "0.1.0", 1
        )

    @staticmethod
    def _as_hello(sealed: Envelope) -> bytes:
        return Saboteur._as("hello", sealed)

    @staticmethod
    def _as(name: str, sealed: Envelope) -> bytes:
        message: bytes = node_pb2.AttachRequest(**{name: loose(sealed)}).SerializeToString()
        return message


class _RawCall(AttachCall):
    """A stream on which bytes are said as they are."""

    def __init__(self, channel: Any, node: NodeActor) -> None:
        self.node = node
        self.stream = channel.stream_stream(
            "/novamesh.v1.NodeService/Attach",
            request_serializer=lambda data: data,
            response_deserializer=node_pb2.AttachResponse.FromString,
        )()


async def _end(call: AttachCall) -> NovaMeshError | None:
    """Why a stream ends; None if it answers a question first."""
    try:
        while (await call.read()).idle_report is None:
            pass
    except NovaMeshError as error:
        return error
    return None
