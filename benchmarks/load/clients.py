"""Clients that ask for one answer after the other: match, seal, submit, watch, countersign."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field

import grpc.aio

from load.nodes import Answers, dial, now_ms
from novamesh_proto.errors import Code, NovaMeshError
from support.actors import ClientActor
from support.memory_channel import Caller
from support.parties import COORDINATOR

BUSY = frozenset({Code.BUSY, Code.NO_CAPACITY})


@dataclass
class Seen:
    """What clients saw, in seconds each."""

    admit: list[float] = field(default_factory=list)  # from asking to submit until it is durable
    relay: list[float] = field(default_factory=list)  # from the node's first chunk to the client
    first: list[float] = field(default_factory=list)  # from submitting to the first chunk
    whole: list[float] = field(default_factory=list)  # from matching to the last event
    refused: list[float] = field(default_factory=list)  # until a BUSY came
    failed: list[str] = field(default_factory=list)
    busy: list[str] = field(default_factory=list)  # why each was refused

    @property
    def answered(self) -> int:
        """How many had their answer."""
        return len(self.whole)


class Crowd:
    """Some clients on some connections, taking turns."""

    def __init__(self, clients: int, connections: int, answers: Answers) -> None:
        self._actors = [ClientActor(f"client-{n}", COORDINATOR.node_id) for n in range(clients)]
        self._connections = connections
        self._answers = answers
        self._turn = itertools.count()
        self._callers: list[Caller] = []

    async def join(self, address: str) -> None:
        """Connect and become members."""
        channels = [await dial(address) for _ in range(self._connections)]
        self._callers = [Caller(channel.channel) for channel in channels]
        for actor in self._actors:
            await self._callers[0].join(actor.claim(now_ms()))

    async def ask(self, seen: Seen) -> None:
        """One job, from beginning to end."""
        number = next(self._turn)
        actor = self._actors[number % len(self._actors)]
        caller = self._callers[number % len(self._callers)]
        began_s = time.perf_counter()
        try:
            await self._ask(actor, caller, f"job-{number}", seen)
            seen.whole.append(time.perf_counter() - began_s)
        except NovaMeshError as error:
            if error.code in BUSY:
                seen.refused.append(time.perf_counter() - began_s)
                seen.busy.append(f"{error.code.value}: {error.message}"[:120])
            else:
                seen.failed.append(f"{error.code.value}: {error.message}"[:120])
        except grpc.aio.AioRpcError as error:
            seen.failed.append(f"gRPC {error.code().name}"[:120])

    async def _ask(self, actor: ClientActor, caller: Caller, key: str, seen: Seen) -> None:
        answers = self._answers
        candidates = await caller.match(actor.match(now_ms(), max_tokens=64))
        order = actor.seal([candidates[0].descriptor], now_ms(), key=key)
        submitted_s = time.perf_counter()
        await caller.submit(order, (candidates[0].reservation,))
        seen.admit.append(time.perf_counter() - submitted_s)
        first_s = 0.0
        async for event in caller.watch(actor.watch(order.id, now_ms())):
            if event.chunk is not None and not first_s:
                first_s = time.perf_counter()
        attempt = answers.done.pop(order.id, None)
        sent_s = answers.first_sent.pop(order.id, 0.0)
        if attempt is None or not first_s:
            raise NovaMeshError(Code.NODE_LOST, "the job ended without an answer")
        seen.relay.append(first_s - sent_s)
        seen.first.append(first_s - submitted_s)
        await caller.countersign(actor.countersign(attempt, now_ms()))
