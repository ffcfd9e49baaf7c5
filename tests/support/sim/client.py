"""A client: the SDK's job session over the SDK's pool connection, one answer after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar

from novamesh.clock import Clock
from novamesh.completion import Completion, Piece
from novamesh.config import ClientSettings
from novamesh.desk import Desk
from novamesh.job_records import JobRecords
from novamesh.order import Options, Order, Prompt
from novamesh.pool import PoolConnection
from novamesh.receipts import Receipts
from novamesh.session import JobSession
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import ChatMessage, ChatPrompt
from support.parties import OFFER, party
from support.sim.process import Process
from support.sim.witness import SECRET
from support.sim.world import Party, World

SETTINGS = ClientSettings(retries=5)
NOBODY_THERE = frozenset({Code.MODEL_NOT_FOUND, Code.UNAVAILABLE})

Work = Callable[[JobSession], Awaitable[Completion]]


@dataclass
class Wish:
    """One answer that a client wants, and what became of it."""

    tokens: int
    deadline_s: float
    stop_after: int | None = None  # pieces, then it loses interest
    tries: int = 1  # while no node is there
    pieces: list[Piece] = field(default_factory=list)
    completion: Completion | None = None
    error: NovaMeshError | None = None
    survived: list[NovaMeshError] = field(default_factory=list)  # the answer went on after them
    mesh: bool = False  # asked of a node itself
    came_s: list[float] = field(default_factory=list)  # when pieces did, on a real clock
    began_s: float = 0.0  # world's time
    took_s: float = 0.0  # until there was an answer, or a reason why there is none
    over: bool = False


class Client(Party):
    """An honest one; see `lying_clients` for what others change."""

    connection: ClassVar[type[PoolConnection]] = PoolConnection
    session: ClassVar[type[JobSession]] = JobSession

    def __init__(self, world: World, number: int) -> None:
        super().__init__(world)
        self.name = f"client-{number}"
        self.key = party(self.name)
        self.wishes: list[Wish] = []
        self.resumed: list[Wish] = []
        self.waits_for: Wish | None = None
        folder = world.folder / self.name
        self.records = JobRecords(folder / "jobs")
        self.receipts = Receipts(folder / "receipts")

    @property
    def busy(self) -> bool:
        """Whether it still wants something."""
        return self.process is None or bool(self.process.tasks)

    async def before(self, desk: Desk) -> None:
        """Something else that it does before it asks."""

    async def after(self, wish: Wish, desk: Desk) -> None:
        """Something else that it does with what it got."""

    async def _run(self, process: Process) -> None:
        clock = Clock(process.now_ms, process.monotonic)
        pool = self.connection(self._world.pool, self.key, clock, 5.0)
        desk = self.furnish(pool, clock)
        try:
            await self._resume(desk)
            for number, wish in enumerate(self.wishes):
                if not wish.over:
                    wish.over = True
                    await self.before(desk)
                    order = make_order(f"{self.name} {number}", wish)
                    await self._wish(wish, lambda session, o=order: session.run(o), desk)
                    while wish.tries > 1 and wish.error and wish.error.code in NOBODY_THERE:
                        # Asked again, an answer begins again: what came of it before is judged
                        # by itself.
                        self.resumed.append(Wish(wish.tokens, wish.deadline_s, pieces=wish.pieces))
                        wish.tries, wish.error, wish.pieces = wish.tries - 1, None, []
                        await asyncio.sleep(0.5)
                        await self._wish(wish, lambda session, o=order: session.run(o), desk)
                    await self.after(wish, desk)
                    await asyncio.sleep(self._world.rng.uniform(0, 2))
        finally:
            await self.leave()
            await pool.close()

    def furnish(self, pool: PoolConnection, clock: Clock) -> Desk:
        """What its sessions work with."""
        return Desk(pool, SETTINGS, self.records, self.receipts, clock)

    async def leave(self) -> None:
        """Let go of what else it works with."""

    async def _resume(self, desk: Desk) -> None:
        """What an earlier life handed in and did not see the end of."""
        for job in self.records.jobs():
            if job not in self.records.jobs():
                continue  # another one's answer went on from it
            wish = Wish(0, 60.0)
            self.resumed.append(wish)
            record = self.records.load(job)
            wish.tokens = record.terms.message.sampling.max_tokens
            await self._wish(wish, lambda s, r=record, w=wish: s.resume(r, w.deadline_s), desk)

    async def _wish(self, wish: Wish, work: Work, desk: Desk) -> None:
        async def emit(piece: Piece) -> None:
            wish.pieces.append(piece)
            if wish.stop_after is not None and len(wish.pieces) >= wish.stop_after:
                raise asyncio.CancelledError

        self.waits_for, wish.began_s = wish, self._world.loop.time()
        session = self.session(desk, emit)
        wish.survived, began_s = session.survived, desk.clock.monotonic()
        try:
            wish.completion = await work(session)
            self._world.note(f"{self.name} has {len(wish.completion.token_ids)} tokens")
        except NovaMeshError as error:
            wish.error = error
            self._world.note(f"{self.name} got {error.code.value}: {error.message[:60]}")
        except asyncio.CancelledError:
            if wish.stop_after is None or len(wish.pieces) < wish.stop_after:
                raise
            self._world.note(f"{self.name} lost interest")
        finally:
            self.waits_for = None
            wish.took_s = desk.clock.monotonic() - began_s


def make_order(prompt: str, wish: Wish) -> Order:
    """What is asked of the pool for a wish."""
    chat = ChatPrompt((ChatMessage("user", SECRET + prompt),))
    options = replace(Options(), max_tokens=wish.tokens)
    return Order(OFFER.name, Prompt(chat=chat), options, wish.deadline_s, wish.mesh)
