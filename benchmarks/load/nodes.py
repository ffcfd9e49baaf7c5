"""Nodes with an engine that needs no time, or a given one; everything else they do is real."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

import grpc.aio

from novamesh.transport import Channel, open_channel
from novamesh_proto import wire
from novamesh_proto.messages import AttachAssignment, JobId
from support.actors import Attempt, NodeActor
from support.memory_channel import AttachCall, Caller
from support.parties import COORDINATOR

DIAL_S = 30.0


def now_ms() -> int:
    """The wall clock."""
    return time.time_ns() // 1_000_000


async def dial(address: str) -> Channel:
    """A connection of its own."""
    return await open_channel(address, COORDINATOR.node_id, DIAL_S)


@dataclass
class Answers:
    """How fake engines answer."""

    chunks: int = 4
    tokens: int = 8  # in each
    work_s: float = 0.0  # before the first chunk
    gap_s: float = 0.0  # from each chunk to the next
    first_sent: dict[JobId, float] = field(default_factory=dict)
    done: dict[JobId, Attempt] = field(default_factory=dict)


class FakeNode:
    """One attached node."""

    def __init__(self, name: str, slots: int, answers: Answers) -> None:
        self.actor = NodeActor(name, COORDINATOR.node_id, slots=slots)
        self._answers = answers
        self._tasks: set[asyncio.Task[None]] = set()
        self._channel: Channel | None = None
        self._pen = asyncio.Lock()  # gRPC takes one message of a stream at a time

    async def attach(self, address: str) -> None:
        """Join, attach, listen."""
        self._channel = channel = await dial(address)
        await Caller(channel.channel).join(self.actor.claim(now_ms()))
        self._call = AttachCall(channel.channel, self.actor)
        await self._call.open(now_ms(), digest=channel.certificate_key_digest)
        self._start(self._listen())

    async def detach(self) -> None:
        """Gone."""
        for task in tuple(self._tasks):
            task.cancel()
        await self._call.close()
        if self._channel is not None:
            await self._channel.close()

    def _start(self, work: object) -> None:
        task = asyncio.ensure_future(work)  # type: ignore[call-overload]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _listen(self) -> None:
        while (message := await self._call.stream.read()) is not grpc.aio.EOF:
            if message.HasField("assignment"):
                self._start(self._work(wire.from_pb(AttachAssignment, message.assignment)))

    async def _work(self, given: AttachAssignment) -> None:
        answers = self._answers
        attempt = self.actor.take(given.assignment, given.job)
        job = attempt.ids["job"]
        await self._say(decision=attempt.decide(now_ms()))
        if answers.work_s:
            await asyncio.sleep(answers.work_s)
        answers.first_sent[job] = time.perf_counter()
        for number in range(answers.chunks):
            if answers.gap_s:
                due_s = answers.first_sent[job] + number * answers.gap_s
                await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
            final = number == answers.chunks - 1
            await self._say(chunk=attempt.chunk(answers.tokens, final=final))
        answers.done[job] = attempt
        await self._say(attestation=attempt.attest(now_ms()))

    async def _say(self, **message: Any) -> None:
        async with self._pen:
            await self._call.send(**message)
