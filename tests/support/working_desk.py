"""A desk at work on fake engines, one a device, and the coordinator's end of its outbox."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from novamesh_node.admission import Admission, House, Policy
from novamesh_node.clock import Clock
from novamesh_node.crew import Crew
from novamesh_node.desk import SLOTS_MAX, Desk, Fixtures
from novamesh_node.governor import Ruling
from novamesh_node.outbox import Outbox
from novamesh_proto import envelope
from novamesh_proto.envelope import ReplayWindow
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import (
    AttachRequest,
    ChunkBody,
    Envelope,
    JobDecision,
    MessageId,
    RunningAttempt,
)
from support.clock import START_MS
from support.fake_crew import station
from support.fake_engine import CONTEXT, FakeEngine
from support.offers import SIGNER, Offer, Offers, advertiser
from support.parties import COORDINATOR, NETWORK, NODE, PROFILE

CLOCK = Clock(wall_ms=lambda: START_MS)
LONG = 10**6


@dataclass
class Owner:
    """What the desk asked and told."""

    now: Ruling = Ruling(4, True)  # noqa: RUF009  a frozen value
    taken: int = 0
    over: int = 0
    rest: asyncio.Event = field(default_factory=asyncio.Event)

    def ruling(self) -> Ruling:
        return self.now

    def took(self) -> None:
        self.taken += 1
        self.rest.clear()

    def ended(self) -> None:
        self.over += 1
        if self.over == self.taken:
            self.rest.set()


@dataclass
class Node:
    """A desk at work and the coordinator's end of its outbox."""

    desk: Desk
    engine: FakeEngine
    owner: Owner
    offers: Offers
    crew: Crew
    outbox: Outbox = field(default_factory=Outbox)

    def attach(self, *wanted: RunningAttempt) -> tuple[AttachRequest, ...]:
        self.outbox = Outbox()
        return self.desk.resume(self.outbox, wanted)

    async def next(self) -> AttachRequest:
        message = await asyncio.wait_for(self.outbox.next(), 5)
        assert message is not None
        return message

    async def until(self, kind: str) -> list[AttachRequest]:
        """Everything up to the next message of a kind, that one included."""
        found = [await self.next()]
        while getattr(found[-1], kind) is None:
            found.append(await self.next())
        return found

    async def decision(self) -> JobDecision:
        (*_, last) = await self.until("decision")
        return opened(last.decision, JobDecision)

    async def idle(self) -> None:
        await asyncio.wait_for(self.owner.rest.wait(), 5)
        assert self.desk.running == 0


def opened(sealed: Envelope | None, kind: Any) -> Any:
    assert sealed is not None
    return envelope.open(sealed, kind, network=NETWORK, audience=COORDINATOR.node_id).message


def read(offer: Offer, messages: list[AttachRequest]) -> list[ChunkBody]:
    opener = offer.opener()
    return [opener.open(m.chunk.chunk) for m in messages if m.chunk is not None]


def tokens(bodies: list[ChunkBody]) -> list[int]:
    return [token for each in bodies for token in each.token_ids]


@contextlib.asynccontextmanager
async def node(
    engine: FakeEngine | None = None,
    remember: Callable[[MessageId, int], None] = lambda _id, _until: None,
    clock: Clock = CLOCK,
    crew: Crew | None = None,
    policy: Policy = Policy(),  # noqa: B008  a frozen value
) -> AsyncIterator[Node]:
    engine, owner, source = engine or FakeEngine(), Owner(), advertiser()
    crew = crew or Crew([station("cpu", engine, clock=clock)], SLOTS_MAX)
    workers = [worker for each in crew.stations for worker in each.workers]
    for worker in workers:
        worker.start()
    house = House(NODE.node_id, COORDINATOR.node_id, NETWORK, {PROFILE: CONTEXT}, policy)
    fixtures = Fixtures(Admission(house, ReplayWindow()), source, SIGNER, crew, remember, clock)
    try:
        async with asyncio.TaskGroup() as tasks:
            desk = Desk(fixtures, owner, tasks)
            made = Node(desk, engine, owner, Offers(source), crew)
            made.attach()
            yield made
            desk.abandon(NovaMeshError(Code.UNAVAILABLE, "the test is over"))
    finally:
        await asyncio.gather(*(worker.stop() for worker in workers))
