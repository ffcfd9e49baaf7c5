"""Honest parties over pinned TLS: a node that answers whatever it is given, a client that waits."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc.aio

from novamesh.transport import Channel, open_channel
from novamesh_proto import envelope, wire
from novamesh_proto.envelope import Verified
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import AttachResponse, JobAssignment, JobState
from support.actors import Attempt, ClientActor, NodeActor, Order
from support.memory_channel import AttachCall, Caller
from support.parties import COORDINATOR, NETWORK

DIAL_S = 10.0


def now_ms() -> int:
    """The wall clock."""
    return time.time_ns() // 1_000_000


@dataclass(frozen=True)
class Done:
    """A job that was answered: whose it was, what was ordered and who was given it."""

    client: ClientActor
    order: Order
    assignment: Verified[JobAssignment]
    seconds: float


@dataclass(frozen=True)
class Pace:
    """What a node's answers look like."""

    tokens: int = 8
    prefill_s: float = 0.005
    token_s: float = 0.002


class HonestNode:
    """A node with slots for many jobs; `run` ends with its stream."""

    def __init__(self, name: str, address: str, pace: Pace, slots: int = 16) -> None:
        # Every life of a node advertises itself anew, with a greater number.
        self.actor = NodeActor(name, COORDINATOR.node_id, slots=slots, sequence=now_ms())
        self.answered = 0
        self._address = address
        self._pace = pace
        self._speaking = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def attached(self) -> AsyncIterator[AttachCall]:
        """Attached, and answering, while inside."""
        channel = await open_channel(self._address, COORDINATOR.node_id, DIAL_S)
        try:
            await Caller(channel.channel).join(self.actor.claim(now_ms()))
            call = AttachCall(channel.channel, self.actor)
            await call.open(now_ms(), digest=channel.certificate_key_digest)
            async with asyncio.TaskGroup() as tasks:
                serving = tasks.create_task(self._serve(call, tasks))
                yield call
                serving.cancel()
        finally:
            await channel.close()

    async def _serve(self, call: AttachCall, tasks: asyncio.TaskGroup) -> None:
        while True:
            # Not call.read(): a read that is cut short loses the message that comes next.
            came = await call.stream.read()
            if came is grpc.aio.EOF:
                return
            given = wire.from_pb(AttachResponse, came).assignment
            if given is not None:
                attempt = self.actor.take(given.assignment, given.job)
                tasks.create_task(self._answer(call, attempt))

    async def _answer(self, call: AttachCall, attempt: Attempt) -> None:
        pace = self._pace
        await self._say(call, decision=attempt.decide(now_ms()))
        await asyncio.sleep(pace.prefill_s)
        for token in range(pace.tokens):
            await asyncio.sleep(pace.token_s)
            await self._say(call, chunk=attempt.chunk(final=token == pace.tokens - 1))
        await self._say(call, attestation=attempt.attest(now_ms()))
        self.answered += 1

    async def _say(self, call: AttachCall, **message: Any) -> None:
        async with self._speaking:  # gRPC takes one write at a time
            await call.send(**message)


class HonestClient:
    """A member with one job after the other, or several at once."""

    def __init__(self, name: str, channel: Channel) -> None:
        self.actor = ClientActor(name, COORDINATOR.node_id)
        self.caller = Caller(channel.channel)
        self._channel = channel
        self._keys = itertools.count()

    @classmethod
    async def join(cls, name: str, address: str) -> HonestClient:
        """Dial and become a member."""
        channel = await open_channel(address, COORDINATOR.node_id, DIAL_S)
        client = cls(name, channel)
        await client.caller.join(client.actor.claim(now_ms()))
        return client

    async def close(self) -> None:
        """Hang up."""
        await self._channel.close()

    async def job(self) -> Done:
        """A whole job, from the match to its settlement.

        Raises:
            NovaMeshError: it was refused, or ended badly.
        """
        began_s, key = time.monotonic(), f"{now_ms()} {next(self._keys)}"
        candidates = await self.caller.match(self.actor.match(now_ms()))
        order = self.actor.seal([one.descriptor for one in candidates], now_ms(), key)
        await self.caller.submit(order, tuple(one.reservation for one in candidates))
        state, code, assignments = JobState.UNSPECIFIED, "", []
        async for event in self.caller.watch(self.actor.watch(order.id, now_ms())):
            if event.job is not None:
                state, code = event.job.state, event.job.code
            if event.assignment is not None:
                assignments.append(event.assignment)
        if state is not JobState.SETTLED:
            raise NovaMeshError(Code.NODE_LOST, f"the job ended {state.name} {code}")
        assigned = envelope.open(assignments[-1], JobAssignment, network=NETWORK)
        return Done(self.actor, order, assigned, time.monotonic() - began_s)
