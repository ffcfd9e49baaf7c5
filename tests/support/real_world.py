"""The parties of the simulated world on the real network and the real clock.

Nodes and clients are the production code over an engine that counts; the coordinator is a process
of its own with its own disk, port and TLS, started by whoever uses this. Afterwards the log and
what clients hold are looked over.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from novamesh.clock import Clock
from novamesh.completion import Completion, Piece
from novamesh.config import ClientSettings, Pool
from novamesh.desk import Desk
from novamesh.job_records import JobRecords
from novamesh.order import Options, Order, Prompt
from novamesh.pool import PoolConnection
from novamesh.receipts import Receipts, verify_file
from novamesh.session import JobSession
from novamesh_coordinator.check import check
from novamesh_coordinator.config import CoordinatorConfig, PostgresUrl
from novamesh_coordinator.events import AttemptSettled, JobAdmitted
from novamesh_coordinator.log_chain import read_row
from novamesh_coordinator.store import open_store
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.identity import format_node_id
from novamesh_proto.messages import ChatMessage, ChatPrompt, JobId
from support.parties import COORDINATOR, NETWORK, OFFER, party
from support.sim.loop import START_S
from support.sim.parties import IDENTITY, Party, Wish, World

HARMLESS = frozenset(
    {Code.BUSY, Code.EXPIRED, Code.NODE_LOST, Code.NO_CAPACITY, Code.STALE, Code.UNAVAILABLE}
)


@dataclass(frozen=True)
class Premises:
    """Where a coordinator lives: its folder with a known key in it, and its ports on loopback."""

    folder: Path
    port: int
    http_port: int = 0

    @property
    def config(self) -> CoordinatorConfig:
        """What it is set to."""
        http = f"127.0.0.1:{self.http_port}" if self.http_port else ""
        return CoordinatorConfig(NETWORK, f"127.0.0.1:{self.port}", http, open=True)

    def furnish(self, folder: Path | None = None) -> None:
        """Make the folder, or the same one where it is seen from elsewhere."""
        folder, config = folder or self.folder, self.config
        folder.mkdir(exist_ok=True)
        key = folder / "coordinator.key"
        key.touch(0o600)
        key.write_text(COORDINATOR.to_bytes().hex() + "\n")
        lines = [f'network = "{NETWORK}"', f'listen = "{config.listen}"', f'http = "{config.http}"']
        (folder / "config.toml").write_text("\n".join([*lines, "open = true", ""]))


def make_world(root: Path, port: int, rng: random.Random) -> World:
    """What nodes and clients stand on; call it in the loop that they will run in."""
    loop = asyncio.get_running_loop()
    epoch_ms = time.time_ns() // 1_000_000 - round((loop.time() - START_S) * 1000)
    pool = Pool(f"127.0.0.1:{port}", format_node_id(COORDINATOR.node_id), NETWORK, "")
    nobody: Any = None
    return World(loop, nobody, nobody, rng, lambda text: None, root, pool, epoch_ms)


class Asker:
    """A client that asks once, and does not try again unless it is told to."""

    def __init__(self, world: World, name: str = "asker") -> None:
        self.pool = PoolConnection(world.pool, party(name), Clock.system(), 20.0)
        self.records = JobRecords(world.folder / name / "jobs")
        receipts = Receipts(world.folder / name / "receipts")
        self._desk = Desk(self.pool, ClientSettings(), self.records, receipts, Clock.system())
        self.wishes: list[Wish] = []

    async def ask(self, tokens: int = 4, deadline_s: float = 60.0, tries: int = 1) -> Wish:
        """One answer, or why there is none."""
        wish = Wish(tokens, deadline_s)
        self.wishes.append(wish)
        chat = ChatPrompt((ChatMessage("user", f"{len(self.wishes)}"),))
        options = replace(Options(), max_tokens=tokens)
        order = Order(OFFER.name, Prompt(chat=chat), options, deadline_s)

        await self._carry_out(wish, tries, lambda session: session.run(order))
        return wish

    async def resume(self, job: JobId) -> Wish:
        """The answer to what an earlier life asked for."""
        wish = Wish(0, 60.0)
        self.wishes.append(wish)
        record = self.records.load(job)
        await self._carry_out(wish, 5, lambda session: session.resume(record, 60.0))
        return wish

    async def _carry_out(
        self, wish: Wish, tries: int, work: Callable[[JobSession], Awaitable[Completion]]
    ) -> None:
        async def emit(piece: Piece) -> None:
            wish.pieces.append(piece)
            wish.came_s.append(time.monotonic())

        desk = replace(self._desk, settings=ClientSettings(retries=tries))
        session = JobSession(desk, emit)
        wish.survived = session.survived
        try:
            wish.completion = await work(session)
        except NovaMeshError as error:
            wish.error = error


async def end(parties: Sequence[Party]) -> None:
    """Everybody goes home."""
    for one in parties:
        if one.process is not None:
            for task in tuple(one.process.tasks):
                task.cancel()
                await asyncio.wait([task], timeout=5)


async def problems(place: Path | PostgresUrl, wishes: Sequence[Wish]) -> AsyncIterator[str]:
    """What is wrong with the log of a coordinator that is dead, and with what clients hold.

    The log is in a folder, or in a database that several coordinators used.
    """
    try:
        store = await open_store(place / "coordinator.db" if isinstance(place, Path) else place)
    except NovaMeshError as error:
        yield f"the database cannot be opened: {error.message}"
        return
    try:
        report = await check(IDENTITY, store)
        records = [read_row(row) async for row in store.rows()]
    finally:
        await store.close()
    for problem in report.problems:
        yield problem
    admitted = {r.job for r in records if isinstance(r, JobAdmitted)}
    settled = {r.settlement for r in records if isinstance(r, AttemptSettled)}
    if not any(wish.completion for wish in wishes):
        yield f"nobody was answered: {[wish.error and wish.error.message for wish in wishes]}"
    for wish in wishes:
        for problem in _of_wish(wish):
            yield problem
        if wish.completion is not None:
            if wish.completion.job not in admitted:
                yield "a client was answered, and its job is not in the log"
            if wish.completion.receipt.settlement not in settled:
                yield "a client holds a settlement that the log does not know"


def _of_wish(wish: Wish) -> list[str]:
    if wish.completion is None:
        if wish.error is None or wish.error.code not in HARMLESS:
            return [f"a client got neither an answer nor a reason that is one: {wish.error}"]
        return []
    try:
        verify_file(wish.completion.receipt_path)
    except (NovaMeshError, OSError) as error:
        return [f"a receipt does not verify: {error}"]
    return []
