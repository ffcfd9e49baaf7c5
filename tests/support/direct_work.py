"""An attempt on its two ways: its node makes chunks, its client and the coordinator take them."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from novamesh_node.delivery import Delivery
from novamesh_node.outbox import Outbox
from novamesh_node.tail import Tail
from novamesh_proto.messages import (
    AttachRequest,
    AttemptChunk,
    Envelope,
    JobId,
    JobProgress,
    Signature,
    StreamChunk,
)

JOB = JobId(bytes(32))


def said(name: bytes) -> Envelope:
    return Envelope("t", name, (Signature(bytes(38), bytes(64)),))


def chunk(index: int, size: int = 32) -> AttachRequest:
    return AttachRequest(chunk=AttemptChunk(JOB, 1, 1, StreamChunk(index, 1, False, bytes(size))))


RECEIPT, ACK, CLAIM = said(b"receipt"), said(b"ack"), AttachRequest(attestation=said(b"claim"))
WITNESSES = (AttachRequest(witness=ACK), AttachRequest(witness=RECEIPT))
PROGRESS = AttachRequest(progress=JobProgress(JOB, 1, 1, 3))


class Work:
    """An attempt that makes a chunk when told, its client, and the coordinator's end."""

    def __init__(self, *, alone: bool = False, bytes_max: int = 1 << 20) -> None:
        self.session = Outbox()
        self.delivery = Delivery(None if alone else lambda: self.session)
        self.tail = Tail(bytes_max)
        self.made = 0
        self.client: list[int] = []  # chunks that the client holds
        self.coordinator: list[int] = []
        self.claims = 0
        self.witnesses: list[AttachRequest] = []
        self.outbox: Outbox | None = None  # the client's
        self._checkpoints = itertools.count()

    async def make(self, *, last: bool = False, size: int = 32) -> None:
        """What the desk does with one engine output."""
        messages = [chunk(self.made, size)]
        self.made += 1
        self.tail.append(messages[0], self.made)
        after = CLAIM if last else AttachRequest(checkpoint=said(b"%d" % next(self._checkpoints)))
        self.tail.append(after, self.made)
        await self.delivery.send((*messages, after), self.tail)

    async def follow(self) -> None:
        backlog, self.outbox = await self.delivery.follow(self.tail, len(self.client))
        for message in backlog:
            self.client_takes(message)

    async def leave(self) -> None:
        outbox, self.outbox = self.outbox, None
        if outbox is not None:
            await self.delivery.unfollow(outbox, self.tail)

    async def attach(self, outbox: Outbox | None = None) -> None:
        """A new session of the coordinator, that knows what it has."""
        before, self.session = self.session, outbox or Outbox()
        for message in self.delivery.resume(self.tail, len(self.coordinator)):
            self.coordinator_takes(message)
        await before.close()

    async def read(self) -> None:
        """Whatever waits on either side arrives."""
        for _ in range(3):
            await asyncio.sleep(0)
            while self.outbox is not None and len(self.outbox):
                message = await self.outbox.next()
                assert message is not None
                self.client_takes(message)
            while len(self.session):
                message = await self.session.next()
                assert message is not None
                self.coordinator_takes(message)

    def client_takes(self, message: AttachRequest) -> None:
        if message.chunk is not None:
            assert message.chunk.chunk.index == len(self.client), "a gap or a repeat"
            self.client.append(message.chunk.chunk.index)

    def coordinator_takes(self, message: AttachRequest) -> None:
        if message.chunk is not None:
            assert message.chunk.chunk.index == len(self.coordinator), "a gap or a repeat"
            self.coordinator.append(message.chunk.chunk.index)
        if message.witness is not None:
            self.witnesses.append(message)
        self.claims += message.attestation is not None


@asynccontextmanager
async def making(work: Work) -> AsyncIterator[asyncio.Queue[bool]]:
    """The attempt's own task: it makes a chunk for everything that is put into the queue."""
    orders: asyncio.Queue[bool] = asyncio.Queue()

    async def run() -> None:
        while True:
            await work.make(last=await orders.get())
            orders.task_done()

    task = asyncio.create_task(run())
    try:
        yield orders
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
