"""A sequencer over a real database and a state as long as a busy pool's, without gRPC."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import random
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

from load.nodes import now_ms
from novamesh_coordinator import snapshotter
from novamesh_coordinator.core import Core, CoreState
from novamesh_coordinator.inputs import JoinAsked
from novamesh_coordinator.sequencer import Clock, Sequencer
from novamesh_coordinator.store import Store, open_store
from novamesh_proto.messages import JobId, JoinClaim
from support.actors import ClientActor
from support.parties import COORDINATOR
from support.table import Table


@dataclass
class LongState:
    """It takes inputs; a snapshot is written after each `every` of them."""

    table: Table
    store: Store
    sequencer: Sequencer

    def join(self, number: int) -> JoinAsked:
        """Somebody new: one record."""
        claim = ClientActor(f"member {number}", COORDINATOR.node_id).claim(now_ms())
        return JoinAsked(self.table.verifier.open(claim, JoinClaim, now_ms()))

    async def submit(self, event: JoinAsked) -> float:
        """Seconds until it is durable and answered."""
        began_s = time.perf_counter()
        await self.sequencer.submit(event)
        return time.perf_counter() - began_s


@contextlib.asynccontextmanager
async def long_state(jobs: int, every: int) -> AsyncIterator[LongState]:
    """A pool in which so many jobs have ended within the last half hour."""
    snapshotter.SNAPSHOT_EVERY = every  # type: ignore[misc]
    table = Table(open_pool=True)
    core = Core(table.identity, _state(table, jobs))
    with tempfile.TemporaryDirectory(prefix="long-state-") as folder:
        store = await open_store(Path(folder) / "coordinator.db")
        await store.load()
        clock = Clock(now_ms, time.monotonic)
        sequencer = Sequencer(core, store, clock, random.Random(0), lambda effect: None)
        loops = [asyncio.create_task(loop()) for loop in sequencer.loops()]
        try:
            yield LongState(table, store, sequencer)
        finally:
            for loop in loops:
                loop.cancel()
            await asyncio.gather(*loops, return_exceptions=True)
            await store.close()


def _state(table: Table, jobs: int) -> CoreState:
    """One job that was truly settled, very often under other names."""
    client, node = table.client(), table.node()
    order = table.order(client, node)
    table.answer(table.assigned(node))
    state, job = table.core.state(), table.core.jobs.get(order.id)
    assert job is not None
    job = replace(job, ended_ms=now_ms())
    ids = [JobId(hashlib.sha256(b"%d" % n).digest()) for n in range(jobs)]
    copies = [replace(job, job=one, root=one, key=one.hex()[:16]) for one in ids]
    paid = tuple(zip(ids, itertools.repeat(job.tokens)))
    return replace(
        state,
        jobs=replace(state.jobs, jobs=tuple(copies)),
        ledger=replace(state.ledger, paid=paid),
    )
