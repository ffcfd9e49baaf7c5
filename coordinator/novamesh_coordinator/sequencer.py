"""One input after the other: step, commit, effects, reply. The shell around the core.

Rules: steps run one at a time; their records are committed in order, many steps in one transaction
while the disk is busy; no effect and no reply leaves before what was decided until then is durable.
If the disk refuses, everybody who waits gets STORAGE, the core is built again from what is on disk,
new work is refused while reading goes on, and the disk is probed until it takes writes again.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Final

import structlog

from novamesh_coordinator import inputs
from novamesh_coordinator.core import Core
from novamesh_coordinator.effects import UNORDERED, Effect, Outcome
from novamesh_coordinator.events import Moment
from novamesh_coordinator.group_commit import GroupCommit
from novamesh_coordinator.inputs import Input, Ticked
from novamesh_coordinator.snapshotter import Snapshotter
from novamesh_coordinator.store import Entry, Store
from novamesh_coordinator.stored_log import Loaded
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import JobId

BATCH_MAX: Final = 64
QUEUE_MAX: Final = 4_096
TICK_S: Final = 0.25
PROBE_S: Final = 1.0

# Inputs that decide nothing durable: they go on while the disk does not take writes. An answer that
# was under way goes on, too: what it is paid waits for the disk.
READING: Final = (
    inputs.ModelsAsked,
    inputs.MatchAsked,
    inputs.WatchAsked,
    inputs.JobAsked,
    inputs.JobsAsked,
    inputs.NodesAsked,
    inputs.AckReceived,
    inputs.ChunkArrived,
    inputs.CheckpointArrived,
    inputs.IdleAsked,
    inputs.LoadChanged,
    inputs.PrefillMoved,
)
# Whoever asks these takes the answer for a promise. Asked again they log nothing, and wait all the
# same until what was asked before is durable.
PROMISING: Final = (inputs.BanAsked, inputs.JoinAsked, inputs.ReceiptHandedIn)

_log = structlog.get_logger()


@dataclass(slots=True)
class _Waiting:
    """A step that was taken and is not yet durable."""

    outcome: Outcome
    entry: Entry
    done: asyncio.Future[object]


@dataclass(frozen=True, slots=True)
class Clock:
    """Where moments come from: wall clock in ms, monotonic clock in s."""

    now_ms: Callable[[], int]
    monotonic: Callable[[], float]

    def now(self) -> Moment:
        """This moment."""
        return Moment(self.now_ms(), int(self.monotonic() * 1_000_000))


class Sequencer:
    """The one owner of the core while it runs."""

    def __init__(
        self,
        core: Core,
        store: Store,
        clock: Clock,
        rng: random.Random,
        deliver: Callable[[Effect], None],
    ) -> None:
        self.core = core
        self._store = store
        self._clock = clock
        self._rng = rng
        self._deliver = deliver
        self._queue: deque[_Waiting] = deque()
        self._work = asyncio.Event()
        self._writing = 0  # steps that the writer has in hand
        self._group = GroupCommit()
        self._healthy = asyncio.Event()
        self._healthy.set()
        self._ready = asyncio.Event()  # the core is what the disk says, and no other
        self._ready.set()
        self._poisoned = False
        self._unreadable = False
        self._lost: list[_Waiting] = []  # what a failed commit held, until they are told
        self._snapshots = Snapshotter(store)
        self.commits = 0

    @property
    def healthy(self) -> bool:
        """Whether the disk takes writes."""
        return self._healthy.is_set() and not self._store.unsure

    async def submit(self, event: Input, body: tuple[JobId, bytes] | None = None) -> object:
        """Handle an input and wait until it is durable; returns the reply.

        Raises:
            NovaMeshError: what the core refuses; STORAGE; BUSY if too much waits for the disk.
        """
        if self._unreadable:
            raise _storage_down("cannot be read")
        await self._ready.wait()
        if not self.healthy and not isinstance(event, READING):
            raise _storage_down("takes no writes, so no new work is taken")
        if len(self._queue) >= QUEUE_MAX:
            raise NovaMeshError(
                Code.BUSY, "the coordinator is overloaded", "try again shortly", 1_000
            )
        outcome = self._step(event)
        if not outcome.records and self._may_leave(event, outcome):
            self._release(outcome)
            return outcome.reply
        done: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        kept = body if outcome.records else None
        self._queue.append(_Waiting(outcome, Entry(outcome.records, kept), done))
        self._work.set()
        return await done

    async def insist(self, event: Input) -> object:
        """The same for what a node says, which is not lost because a disk is full: wait, repeat.

        Raises:
            NovaMeshError: what the core refuses.
        """
        while True:
            if not isinstance(event, READING):
                await self._healthy.wait()
            try:
                return await self.submit(event)
            except NovaMeshError as error:
                if error.code not in (Code.STORAGE, Code.BUSY):
                    raise
            await asyncio.sleep(TICK_S)

    def loops(self) -> tuple[Callable[[], Coroutine[object, object, None]], ...]:
        """What must run, each in a task of its own, for as long as inputs come."""
        return self.run_writer, self.run_timer, self.run_probe, self._snapshots.run

    async def run_writer(self) -> None:
        """Commit what waits, for ever."""
        while True:
            await self._work.wait()
            self._work.clear()
            while self._queue:
                if pause_s := self._group.pause_s(self._clock.monotonic()):
                    await asyncio.sleep(pause_s)
                await self._write_batch()
            if self._poisoned:
                await self._rebuild()
                self._poisoned = False

    async def run_timer(self) -> None:
        """Tell the core that time passes."""
        while True:
            await asyncio.sleep(TICK_S)
            if self.healthy:
                try:
                    await self.submit(Ticked())
                except NovaMeshError as error:
                    _log.warning("tick", code=error.code.value, error=error.message)
                except Exception:
                    # The boundary of a tick: a bug in one must not stop all the later ones.
                    _log.exception("a tick failed")
            self._offer_snapshot()

    async def run_probe(self) -> None:
        """While the disk refuses, try it once a second."""
        while True:
            await asyncio.sleep(PROBE_S)
            if self._healthy.is_set() or not self._ready.is_set():
                continue
            try:
                await self._store.probe(self._clock.now().wall_ms)
            except NovaMeshError:
                continue
            _log.info("storage works again")
            self._healthy.set()

    async def save(self) -> None:
        """Write a snapshot at the end, so that the next start is quick; nothing comes any more."""
        if self._settled and self.healthy:
            await self._snapshots.save(self.core)

    @property
    def _settled(self) -> bool:
        """Whether the core is exactly what is on disk."""
        return not self._queue and not self._writing and self._ready.is_set()

    def _step(self, event: Input) -> Outcome:
        try:
            return self.core.step(event, self._clock.now(), self._rng)
        except NovaMeshError:
            raise
        except Exception:
            # A bug of ours may have left the core half changed: it is built again from the log.
            self._poisoned = True
            self._ready.clear()
            self._work.set()
            raise

    def _may_leave(self, event: Input, outcome: Outcome) -> bool:
        """Whether nothing that this rests on still has to be committed."""
        if not self._queue and not self._writing:
            return True
        if isinstance(event, PROMISING):
            return False
        return outcome.reply is None and all(isinstance(e, UNORDERED) for e in outcome.effects)

    async def _write_batch(self) -> None:
        batch = [self._queue.popleft() for _ in range(min(BATCH_MAX, len(self._queue)))]
        entries = [waiting.entry for waiting in batch if waiting.entry.records]
        self._writing = len(batch)
        try:
            if entries:
                self._group.begin(len(entries), self._clock.monotonic())
                await self._store.commit(entries)
                self.commits += 1
        except NovaMeshError as error:
            await self._fall_back(batch, error)
            return
        finally:
            self._writing = 0
        for waiting in batch:
            self._release(waiting.outcome)
            if not waiting.done.done():
                waiting.done.set_result(waiting.outcome.reply)
        self._offer_snapshot()

    def _offer_snapshot(self) -> None:
        if self._settled:
            self._snapshots.offer(self.core, self._clock.monotonic())

    def _release(self, outcome: Outcome) -> None:
        for effect in outcome.effects:
            self._deliver(effect)

    async def _fall_back(self, batch: list[_Waiting], error: NovaMeshError) -> None:
        """Nothing of the batch is durable: go back to what is, and let everybody know."""
        if error.code is Code.CONFLICT:
            raise error  # another coordinator writes now: it alone knows what became of the batch
        _log.error("storage refuses writes", error=error.message, hint=error.hint)
        self._healthy.clear()
        self._ready.clear()
        self._lost = [*batch, *self._queue]
        self._queue.clear()
        await self._rebuild()
        self._refuse_lost(error)

    def _refuse_lost(self, error: NovaMeshError) -> None:
        for waiting in self._lost:
            if not waiting.done.done():
                waiting.done.set_exception(error)
        self._lost.clear()

    async def _rebuild(self) -> None:
        """Make the core what the disk says; presence and streams stay."""
        loaded = await self._load()
        older = self.core
        core = Core(older.identity, loaded.state, older.relay)
        core.replay(loaded.records)
        core.adopt(older, self._clock.now())
        self.core = core
        self._ready.set()

    async def _load(self) -> Loaded:
        """What is on disk; a disk that cannot be read either is asked again."""
        while True:
            try:
                loaded = await self._store.load()
            except NovaMeshError as error:
                if error.code is not Code.STORAGE:
                    raise
                self._unreadable = True
                self._refuse_lost(error)
                _log.error("storage cannot be read", error=error.message)
            else:
                self._unreadable = False
                return loaded
            await asyncio.sleep(PROBE_S)


def _storage_down(how: str) -> NovaMeshError:
    return NovaMeshError(
        Code.STORAGE,
        f"the coordinator's disk {how}",
        "try again later; its owner must free space on it, or mend it",
        retry_after_ms=2_000,
    )
