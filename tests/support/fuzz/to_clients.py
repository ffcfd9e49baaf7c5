"""What a coordinator, and a node behind it, can make a client read: replies, and a job's events.

Pool connection, session and reader are the SDK's own, on virtual time, over a channel that answers
whatever it is told to. An answer that is taken must have a receipt that verifies.
"""

from __future__ import annotations

import asyncio
import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import grpc
import grpc.aio
import pytest
from google.protobuf.message import DecodeError

from novamesh.clock import Clock
from novamesh.completion import Piece
from novamesh.config import ClientSettings, Pool
from novamesh.desk import Desk
from novamesh.job_records import JobRecords
from novamesh.model_choice import choose_model
from novamesh.pool import PoolConnection, Wanted
from novamesh.receipts import Receipts
from novamesh.session import JobSession
from novamesh.transport import Channel as PinnedChannel
from novamesh_proto import envelope, wire
from novamesh_proto.chunks import ChunkSealer
from novamesh_proto.errors import NovaMeshError
from novamesh_proto.identity import format_node_id
from novamesh_proto.limits import CHUNK_BYTES_MAX, CHUNK_PADDING
from novamesh_proto.messages import (
    Candidate,
    ChunkBody,
    FinishReason,
    JobState,
    JobView,
    PoolCard,
    PoolModel,
    WatchResponse,
)
from novamesh_proto.padding import pad
from novamesh_proto.receipt import encode_receipt, verify_receipt
from novamesh_proto.v1 import coordinator_pb2 as pb
from novamesh_proto.v1 import job_pb2
from support.answers import SentAnswer, send_answer
from support.clock import START_MS
from support.fake_answer import NETWORK
from support.fuzz import tree
from support.fuzz.methods import KEYS
from support.fuzz.sealing import blank, complete, repeatable
from support.fuzz.target import Target
from support.fuzz.tree import frames
from support.parties import CLIENT, COORDINATOR, NODE, PROFILE, descriptor, head
from support.sim.loop import START_S, VirtualLoop

WATCHED: Final = frames("events of a job", event=pb.WatchResponse, body=job_pb2.ChunkBody)
REPLIES: Final = frames(
    "replies", hello=pb.HelloResponse, models=pb.ListModelsResponse, match=pb.MatchResponse,
    submit=pb.SubmitResponse, cancel=pb.CancelResponse, get=pb.GetJobResponse,
    list=pb.ListJobsResponse, join=pb.JoinResponse,
)  # fmt: skip
EVENT, BODY = 1, 2
POOL: Final = Pool("pool.fuzz:7700", format_node_id(COORDINATOR.node_id), NETWORK, "")
DEADLINE_S: Final = 60.0


def client_targets() -> tuple[Target, ...]:
    """All of it."""
    return (
        Target("events of a job", _watch, _events(), WATCHED),
        Target("replies to a client", _replies, _reply_samples(), REPLIES),
    )


class _Channel:
    """A channel on which every method has its replies; those of `Watch` come one by one."""

    def __init__(self, replies: dict[str, list[bytes]]) -> None:
        self._replies = replies

    def unary_unary(self, method: str, **codec: Any) -> Callable[..., Any]:
        """A method with one reply; empty where nothing was said."""

        async def call(request: Any, timeout: float) -> Any:  # noqa: ASYNC109  gRPC's own
            del request, timeout
            await asyncio.sleep(0.01)
            waiting = self._replies.get(method.rpartition("/")[2])
            return _read(codec, waiting.pop(0) if waiting else b"")

        return call

    def unary_stream(self, method: str, **codec: Any) -> Callable[..., _Events]:
        """A method with many; the second call finds that the pool knows nothing of it."""
        del method
        return lambda request, timeout: _Events(codec, self._replies)

    def stream_stream(self, method: str, **codec: Any) -> Any:
        """Not for clients."""

    async def close(self, grace: float | None = None) -> None:
        """Hang up."""


class _Events:
    def __init__(self, codec: dict[str, Any], replies: dict[str, list[bytes]]) -> None:
        self._codec = codec
        self._known = "Watch" in replies
        self._events = replies.pop("Watch", [])

    def __aiter__(self) -> _Events:
        return self

    async def __anext__(self) -> Any:
        await asyncio.sleep(0.01)
        if self._events:
            return _read(self._codec, self._events.pop(0))
        code = grpc.StatusCode.UNAVAILABLE if self._known else grpc.StatusCode.NOT_FOUND
        raise _status(code, "the stream ended")

    def cancel(self) -> None:
        """Hang up."""


def _read(codec: dict[str, Any], data: bytes) -> Any:
    try:
        return codec["response_deserializer"](data)
    except DecodeError:
        raise _status(grpc.StatusCode.INTERNAL, "gRPC refuses it") from None


def _status(code: Any, details: str) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details)


def _live(replies: dict[str, list[bytes]], work: Callable[[PoolConnection], Any]) -> Any:
    """Do something with a connection on which those replies come."""
    loop = VirtualLoop()
    surprises: list[str] = []
    loop.set_exception_handler(lambda _, what: surprises.append(str(what)))
    clock = Clock(lambda: START_MS + round((loop.time() - START_S) * 1000), loop.time)

    async def dial(address: str, coordinator: object, deadline_s: float) -> PinnedChannel:
        return PinnedChannel(_Channel(replies), bytes(32))  # type: ignore[arg-type]  # not a real one

    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("novamesh.transport.open_channel", dial)
            return loop.run_until_complete(work(PoolConnection(POOL, CLIENT, clock, 5.0)))
    finally:
        assert not surprises, surprises
        assert not asyncio.all_tasks(loop), "something goes on after the end"
        loop.close()


@functools.cache
def sent_answer() -> SentAnswer:
    """The same job in every process."""
    with repeatable("answer"):
        return send_answer()


def _events() -> tuple[bytes, ...]:
    """A whole answer: with its chunks as they were sealed, and with bodies that are still to be."""
    answer, parts = sent_answer(), []
    for event in answer.events:
        if event.chunk is None:
            parts.append((EVENT, wire.encode(event)))
    view = JobView(answer.record.job, JobState.RUNNING, 1, NODE.node_id, PROFILE, START_MS)
    running = (EVENT, wire.encode(WatchResponse(job=view)))
    signed = tree.join(WATCHED, [running, *((EVENT, wire.encode(e)) for e in answer.events)])
    bodies = [
        ChunkBody((number,), word, (), FinishReason.STOP if number == 4 else FinishReason(0))
        for number, word in enumerate(("Two ", "plus ", "three ", "is ", "five."))
    ]
    sealed_later = [parts[0], *((BODY, wire.encode(one)) for one in bodies), *parts[-4:]]
    return blank(signed, WATCHED), blank(tree.join(WATCHED, sealed_later), WATCHED), signed


def _watch(data: bytes) -> object:
    answer = sent_answer()
    given = answer.assignment.message
    sealer = ChunkSealer(
        answer.record.response_key, given.job, given.attempt, given.fence, given.node
    )
    events = []
    for number, part in tree.split(complete(data, WATCHED, KEYS, {}), WATCHED):
        events.append(part if number == EVENT else _sealed(sealer, part))
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        return _live({"Watch": events}, lambda pool: _follow(pool, answer, Path(folder)))


def _sealed(sealer: ChunkSealer, plaintext: bytes) -> bytes:
    """The next chunk over a body, whatever it is; its count of tokens is what it should be."""
    try:
        found = wire.decode(ChunkBody, plaintext)
    except NovaMeshError:
        found = ChunkBody()
    final = found.finish is not FinishReason.UNSPECIFIED
    padded = pad(plaintext, CHUNK_PADDING, CHUNK_BYTES_MAX)
    chunk = sealer.seal_padded(padded, len(found.token_ids), final)
    return wire.encode(WatchResponse(chunk=chunk))


async def _follow(pool: PoolConnection, answer: SentAnswer, folder: Path) -> object:
    pieces: list[Piece] = []

    async def emit(piece: Piece) -> None:
        pieces.append(piece)

    desk = Desk(
        pool, ClientSettings(retries=2), JobRecords(folder / "jobs"), Receipts(folder), pool.clock
    )
    done = await JobSession(desk, emit).resume(answer.record, DEADLINE_S)
    assert done.token_ids == tuple(token for piece in pieces for token in piece.token_ids)
    verify_receipt(encode_receipt(done.receipt))
    return done


def _reply_samples() -> tuple[bytes, ...]:
    job = sent_answer().record.job
    view = wire.to_pb(JobView(job, JobState.RUNNING, 1, NODE.node_id, PROFILE, START_MS))
    card = PoolCard(head(COORDINATOR, label="card", network=NETWORK), START_MS, "0.1.0", True)
    advert = envelope.seal(descriptor(header=head(NODE, label="advert", network=NETWORK)), NODE)
    candidate = Candidate(advert, "it is free", bytes(16))
    model = PoolModel(PROFILE, "nova-pico", 1, 2, 512)
    replies = (
        pb.HelloResponse(card=wire.to_pb(envelope.seal(card, COORDINATOR))),
        pb.ListModelsResponse(models=[wire.to_pb(model)]),
        pb.MatchResponse(candidates=[wire.to_pb(candidate)]),
        pb.SubmitResponse(job=view),
        pb.CancelResponse(job=view),
        pb.GetJobResponse(job=view),
        pb.ListJobsResponse(jobs=[view, view]),
        pb.JoinResponse(),
    )
    numbered = enumerate((reply.SerializeToString() for reply in replies), start=1)
    signed = tree.join(REPLIES, numbered)
    return blank(signed, REPLIES), signed


def _replies(data: bytes) -> object:
    names = ("Hello", "ListModels", "Match", "Submit", "Cancel", "GetJob", "ListJobs", "Join")
    replies: dict[str, list[bytes]] = {}
    for number, part in tree.split(complete(data, REPLIES, KEYS, {}), REPLIES):
        if number <= len(names):
            replies.setdefault(names[number - 1], []).append(part)
    return _live(replies, _ask_everything)


async def _ask_everything(pool: PoolConnection) -> None:
    """Every call once; the first refusal is told at the end."""
    record = sent_answer().record
    calls: tuple[Callable[[], Any], ...] = (
        pool.hello,
        lambda: _choose(pool),
        lambda: _match(pool),
        lambda: pool.cancel(record.job),
        lambda: pool.get_job(record.job),
        lambda: pool.list_jobs(50),
        pool.join,
    )
    refusals: list[NovaMeshError] = []
    for call in calls:
        try:
            await call()
        except NovaMeshError as refusal:
            refusals.append(refusal)
    await pool.close()
    if refusals:
        raise refusals[0]


async def _choose(pool: PoolConnection) -> None:
    choose_model("nova-pico", await pool.list_models())


async def _match(pool: PoolConnection) -> None:
    for candidate in await pool.match(Wanted(PROFILE, 40, 100)):
        envelope.open(
            candidate.descriptor, type(descriptor()), network=NETWORK, now_ms=pool.clock.now_ms()
        )
