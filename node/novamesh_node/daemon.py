"""Composition root of a node: makes every part, joins them, runs them, takes them down.

Order: lock, key, models, machine, then pool. Rules: whatever ends the node comes out of `serve` as
one error; a stop is asked for by signal or socket and carried out by the keeper; what the pool
lacks when the connection breaks waits in the desk, not here. No decision is made in this module.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any, Final

import structlog

from novamesh.config import save_pool
from novamesh.keys import create_key, load_key
from novamesh_node import control, hardware, lifecycle, loading
from novamesh_node.admission import Admission, House
from novamesh_node.attestor import Machine
from novamesh_node.clock import Clock
from novamesh_node.config import NodeConfig
from novamesh_node.descriptor import Advertiser, Facts
from novamesh_node.desk import Desk, Fixtures, Served
from novamesh_node.failures import first_error
from novamesh_node.keeper import Hands, Keeper
from novamesh_node.link import Link
from novamesh_node.loading import LoadedModel
from novamesh_node.notices import Notice, farewell, notice
from novamesh_node.orders import Nameplate, Orders
from novamesh_node.replays import ReplayJournal
from novamesh_node.request import Shape
from novamesh_node.session import FAREWELL_S, Line, Session
from novamesh_node.state import NodeState
from novamesh_node.statements import Signer
from novamesh_node.worker import Worker
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.identity import PrivateKey, format_node_id
from novamesh_proto.messages import ProfileDigest

TICK_S: Final = 1.0
RETRY_TICKS: Final = 60
# Engine and loop share one interpreter; at Python's 5 ms a token would wait several times as long
# for the loop as a small model needs to make it.
SWITCH_S: Final = 0.0005

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Voice:
    """What a person or a script is told: `say` a headline and a line, `ready` once attached."""

    say: Callable[[str, str], None]
    ready: Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Prepared:
    """What takes long to make: loaded models, and the machine as it was found."""

    models: tuple[LoadedModel, ...]
    machine: hardware.Probe


async def serve(config: NodeConfig, voice: Voice) -> None:
    """Run a node until it is stopped.

    Raises:
        NovaMeshError: what ended it, other than being asked to.
    """
    state = NodeState(config.places.node)
    state.lock()
    try:
        await _Daemon(config, voice, state).run()
    except BaseExceptionGroup as group:
        raise first_error(group) from None
    finally:
        state.unlock()


class _Daemon:
    """One run of a node."""

    def __init__(self, config: NodeConfig, voice: Voice, state: NodeState) -> None:
        self._config = config
        self._voice = voice
        self._state = state
        self._clock = Clock()
        paused, until_ms = state.pause()
        self._keeper = Keeper(
            config.slots,
            self._clock,
            lifecycle.State(paused=paused, resumes_at_ms=until_ms),
            watch=self._notice,
        )

    async def run(self) -> None:
        """From nothing to stopped."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, lambda: self._keeper.apply(lifecycle.Stop()))
        key, config = self._load_key(), self._config
        plate = Nameplate(
            node=format_node_id(key.node_id),
            version=version("novamesh"),
            network=config.pool.network,
            address=config.pool.address,
            slots=config.slots,
        )
        self._voice.say("pool", f"{config.pool.network} at {config.pool.address}")
        orders = Orders(self._keeper, plate, self._state.save_pause, self._clock)
        async with control.listen(config.places.node_socket, orders.handle):
            self._notice(lifecycle.State(), self._keeper.state)
            prepared = await self._prepare()
            if prepared is not None:
                await self._serve(key, prepared, orders, plate)
        self._tell(farewell(self._keeper.taken))

    async def _serve(
        self, key: PrivateKey, prepared: Prepared, orders: Orders, plate: Nameplate
    ) -> None:
        """With everything loaded: engines run, the pool is dialled, work is done."""
        models, machine = prepared.models, prepared.machine
        workers = [
            Worker(each.engine, each.profile.name, self._clock, machine.energy_mj)
            for each in models
        ]
        journal = ReplayJournal(self._state.folder / "replays", self._clock.wall_ms())
        sys.setswitchinterval(SWITCH_S)
        try:
            for worker in workers:
                worker.start()
            async with asyncio.TaskGroup() as tasks:
                session = self._assemble(tasks, key, prepared, workers, journal)
                orders.complete(session, _loaded_plate(plate, prepared, self._config))
                self._keeper.apply(lifecycle.Loaded())
                await self._work(tasks, session, key, workers)
        finally:
            await asyncio.gather(*(worker.stop() for worker in workers))
            journal.close()

    def _assemble(
        self,
        tasks: asyncio.TaskGroup,
        key: PrivateKey,
        prepared: Prepared,
        workers: list[Worker],
        journal: ReplayJournal,
    ) -> Session:
        config, pool = self._config, self._config.pool
        models, hardware_ = prepared.models, prepared.machine.hardware
        signer = Signer(key, pool.network, pool.coordinator_id)
        build = loading.engine_build(config.device)
        facts = Facts(tuple(model.offer for model in models), hardware_, build, config.slots)
        advertiser = Advertiser(key, pool.network, facts, self._state.next_sequence)
        contexts = {model.offer.model_profile: model.offer.context_max for model in models}
        house = House(key.node_id, signer.coordinator, pool.network, contexts, config.policy)
        fixtures = Fixtures(
            Admission(house, journal.window), advertiser, signer, Machine(hardware_, build),
            _served(models, workers), journal.remember, self._clock,
        )  # fmt: skip
        desk = Desk(fixtures, self._keeper, tasks)
        link = Link(pool.address, signer, pool.invite_bytes)
        line = Line(
            link.dial, lambda: link.join(self._clock.wall_ms()), self._clock, random.Random()
        )
        session = Session(line, signer, advertiser, desk, self._keeper.load)
        self._keeper.hands = Hands(session.announce, lambda: desk.abandon(_stopped()))
        return session

    async def _work(
        self, tasks: asyncio.TaskGroup, session: Session, key: PrivateKey, workers: list[Worker]
    ) -> None:
        """Everything that runs at the same time, until the keeper halts."""
        attached = tasks.create_task(session.run(), name="session")
        watchers = [
            tasks.create_task(self._welcome(session, key), name="welcome"),
            tasks.create_task(self._tick(session), name="ticker"),
            *(tasks.create_task(_watch(worker), name="watch") for worker in workers),
        ]
        await self._keeper.halted.wait()
        session.leave()
        await asyncio.wait({attached}, timeout=2 * FAREWELL_S)
        for task in (attached, *watchers):
            task.cancel()

    def _notice(self, before: lifecycle.State, after: lifecycle.State) -> None:
        """Tell whoever sits at the terminal of a turn that was taken."""
        found = notice(before, after, self._clock.wall_ms())
        if found is not None:
            self._tell(found)

    def _tell(self, found: Notice) -> None:
        with contextlib.suppress(OSError):  # a terminal that went away must not keep us from a stop
            self._voice.say(*found)

    def _load_key(self) -> PrivateKey:
        path = self._config.places.node_key
        new = not path.exists()
        key = create_key(path) if new else load_key(path)
        note = f"(new key in {path})" if new else ""
        self._voice.say("node", f"{format_node_id(key.node_id)}  {note}".rstrip())
        return key

    async def _prepare(self) -> Prepared | None:
        """Load models and look at the machine; None if the node was stopped meanwhile."""
        config, loop = self._config, asyncio.get_running_loop()
        done: asyncio.Future[Prepared] = loop.create_future()

        def say(headline: str, text: str) -> None:
            loop.call_soon_threadsafe(self._voice.say, headline, text)

        def prepare() -> None:
            try:
                machine = self._look(config)
                say(machine.hardware.kind, hardware.describe(machine.hardware, config.threads))
                models = loading.load_models(config, self._state, lambda text: say("model", text))
                loop.call_soon_threadsafe(_settle, done, Prepared(models, machine))
            except BaseException as error:  # task boundary: raised again on the loop, below
                with contextlib.suppress(RuntimeError):  # unless the node was stopped meanwhile
                    loop.call_soon_threadsafe(_fail, done, error)

        # A daemon thread: loading a large model must not keep an impatient owner waiting.
        threading.Thread(target=prepare, name="loading", daemon=True).start()
        halted = asyncio.ensure_future(self._keeper.halted.wait())
        first: set[asyncio.Future[Any]] = {done, halted}
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        halted.cancel()
        if done.done():
            return done.result()
        done.cancel()
        return None

    def _look(self, config: NodeConfig) -> hardware.Probe:
        """The machine that computes, at its best."""
        found = hardware.probe(config.device, config.threads)
        name = f"{config.device} {config.threads} {found.hardware.name}"
        best = self._state.best_bandwidth(name, found.hardware.bandwidth_bytes_per_s)
        return hardware.with_bandwidth(found, best)

    async def _welcome(self, session: Session, key: PrivateKey) -> None:
        """Tell the world once that the node is attached."""
        await session.attached.wait()
        if self._config.joining:
            save_pool(self._config.places, self._config.pool)
        self._voice.ready(format_node_id(key.node_id))

    async def _tick(self, session: Session) -> None:
        waits = 0
        while True:
            await asyncio.sleep(TICK_S)
            was_paused = self._keeper.state.paused
            self._keeper.apply(lifecycle.Tick())
            waits = max(0, waits - 1)
            try:
                if was_paused and not self._keeper.state.paused:
                    self._state.save_pause(False)
                if not waits:
                    session.advertise()
            except NovaMeshError as error:  # a full disk heals; the old descriptor still counts
                waits = RETRY_TICKS
                _log.warning("not stored", code=error.code.value, error=error.message)


def _loaded_plate(plate: Nameplate, prepared: Prepared, config: NodeConfig) -> Nameplate:
    """The nameplate once the node knows what it is."""
    models = tuple(
        {
            "name": model.offer.name,
            "digest": f"sha256:{model.offer.model_profile.hex()}",
            "context_max": model.offer.context_max,
            "decode_tokens_per_s": round(model.offer.decode_tokens_per_s, 1),
            "prefill_tokens_per_s": round(model.offer.prefill_tokens_per_s, 1),
        }
        for model in prepared.models
    )
    line = hardware.describe(prepared.machine.hardware, config.threads)
    return replace(plate, hardware=line, models=models)


def _served(models: tuple[LoadedModel, ...], workers: list[Worker]) -> dict[ProfileDigest, Served]:
    return {
        model.offer.model_profile: Served(
            model.offer.name,
            worker,
            model.engine.tokenizer,
            Shape(model.engine.max_context, model.engine.model.vocab_size),
        )
        for model, worker in zip(models, workers, strict=True)
    }


async def _watch(worker: Worker) -> None:
    """An engine that cannot be trusted any more ends the node."""
    assert worker.fault is not None
    raise await worker.fault


def _stopped() -> NovaMeshError:
    return NovaMeshError(Code.UNAVAILABLE, "the owner of this node stopped it", "ask another node")


def _settle(done: asyncio.Future[Prepared], result: Prepared) -> None:
    if not done.done():
        done.set_result(result)


def _fail(done: asyncio.Future[Prepared], error: BaseException) -> None:
    if not done.done():
        done.set_exception(error)
