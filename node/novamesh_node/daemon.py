"""Composition root of a node: makes every part, joins them, runs them, takes them down.

Order: lock, key, models, machine, then pool. Rules: whatever ends the node comes out of `serve` as
one error; a stop is asked for by signal or socket and carried out by the keeper; what the pool
lacks when the connection breaks waits in the desk, not here; devices share the one process, an
engine thread each, and one that fails is the watchman's business. No decision is made in this
module.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Final

import pynvml
import structlog
import torch

from novamesh.config import save_pool
from novamesh.keys import create_key, load_key
from novamesh_broker.entrance import open_entrance
from novamesh_node import control, devices, lifecycle, loading, reach
from novamesh_node.admission import Admission, House
from novamesh_node.attestor import Machine
from novamesh_node.clock import Clock
from novamesh_node.config import NodeConfig
from novamesh_node.crew import Crew, Served, Station
from novamesh_node.descriptor import Advertiser
from novamesh_node.desk import SLOTS_MAX, Desk, Fixtures
from novamesh_node.donations import Donations
from novamesh_node.failures import first_error
from novamesh_node.front import Front, Means
from novamesh_node.hardware import mark
from novamesh_node.keeper import Hands, Keeper
from novamesh_node.link import Link
from novamesh_node.loading import LoadedDevice
from novamesh_node.notices import Notice, farewell, notice
from novamesh_node.notify import ServiceManager
from novamesh_node.orders import Nameplate, Orders
from novamesh_node.presence import Presence
from novamesh_node.replays import ReplayJournal
from novamesh_node.request import Shape
from novamesh_node.session import FAREWELL_S, Line, Session
from novamesh_node.state import NodeState
from novamesh_node.statements import Signer
from novamesh_node.watchman import Watchman
from novamesh_node.worker import Worker
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.identity import PrivateKey, format_node_id

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
        self._manager = ServiceManager()
        self._entrance = open_entrance(config.broker) if config.broker else None
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
        )
        self._voice.say("pool", f"{config.pool.network} at {config.pool.address}")
        orders = Orders(self._keeper, plate, self._state.save_pause, self._clock)
        async with control.listen(config.places.node_socket, orders.handle):
            self._notice(lifecycle.State(), self._keeper.state)
            loaded = await self._prepare()
            if loaded is not None:
                await self._serve(key, loaded, orders)
        self._tell(farewell(self._keeper.taken))

    async def _serve(
        self, key: PrivateKey, loaded: tuple[LoadedDevice, ...], orders: Orders
    ) -> None:
        """With everything loaded: engines run, the pool is dialled, work is done."""
        stations = [_station(each, self._config, self._clock, len(loaded) > 1) for each in loaded]
        crew = Crew(stations, SLOTS_MAX)
        workers = [worker for station in stations for worker in station.workers]
        journal = ReplayJournal(self._state.folder / "replays", self._clock.wall_ms())
        sys.setswitchinterval(SWITCH_S)
        try:
            for worker in workers:
                worker.start()
            async with asyncio.TaskGroup() as tasks:
                advertiser = Advertiser(
                    key,
                    self._config.pool.network,
                    crew.facts(),
                    self._state.next_sequence,
                    lambda: self._keeper.load().free_slots,
                    self._config.policy.digest,
                )
                session, front = self._assemble(tasks, key, crew, advertiser, journal)
                presence = self._present(key, advertiser)
                self._keeper.lend(crew.slots)
                async with reach.opened(
                    self._config, key, front, advertiser, self._clock, self._voice.say
                ) as open_to:
                    orders.complete(
                        session, lambda: crew.inventory() | _broker(presence) | open_to.told()
                    )
                    self._keeper.apply(lifecycle.Loaded())
                    watchman = Watchman(crew, self._keeper, advertiser, self._tell)
                    await self._work(tasks, session, presence, key, watchman)
        finally:
            await asyncio.gather(*(worker.stop() for worker in workers))
            journal.close()

    def _assemble(
        self,
        tasks: asyncio.TaskGroup,
        key: PrivateKey,
        crew: Crew,
        advertiser: Advertiser,
        journal: ReplayJournal,
    ) -> tuple[Session, Front]:
        config, pool = self._config, self._config.pool
        signer = Signer(key, pool.network, pool.coordinator_id)
        contexts = {offer.model_profile: offer.context_max for offer in crew.facts().models}
        house = House(key.node_id, signer.coordinator, pool.network, contexts, config.policy)
        fixtures = Fixtures(
            Admission(house, journal.window), advertiser, signer, crew, journal.remember,
            self._clock,
        )  # fmt: skip
        desk = Desk(fixtures, self._keeper, tasks)
        link = Link(pool.address, signer, pool.invite_bytes)
        line = Line(
            link.dial, lambda: link.join(self._clock.wall_ms()), self._clock, random.Random()
        )
        donations = Donations(self._state.folder / "donations")
        session = Session(line, signer, advertiser, desk, self._keeper.load, donations)
        self._keeper.hands = Hands(session.announce, lambda: desk.abandon(_stopped()))
        means = Means(
            desk, signer, advertiser, donations, session.donate, lambda: crew.slots, self._clock,
            version("novamesh"),
        )  # fmt: skip
        return session, Front(means, tasks)

    def _present(self, key: PrivateKey, advertiser: Advertiser) -> Presence | None:
        """Being found at a broker, where one is named."""
        if self._entrance is None:
            return None
        return Presence(
            self._entrance, self._config.pool.network, format_node_id(key.node_id),
            lambda: advertiser.current(self._clock.wall_ms()), self._clock, random.Random(),
        )  # fmt: skip

    async def _work(
        self,
        tasks: asyncio.TaskGroup,
        session: Session,
        presence: Presence | None,
        key: PrivateKey,
        watchman: Watchman,
    ) -> None:
        """Everything that runs at the same time, until the keeper halts."""
        attached = {tasks.create_task(session.run(), name="session")}
        if presence is not None:
            attached.add(tasks.create_task(presence.run(), name="presence"))
        watchers = [
            tasks.create_task(self._welcome(session, key), name="welcome"),
            tasks.create_task(self._tick(session), name="ticker"),
            *(
                tasks.create_task(watchman.watch(station, worker), name="watch")
                for station in watchman.crew.stations
                for worker in station.workers
            ),
        ]
        await self._keeper.halted.wait()
        session.leave()
        if presence is not None:
            presence.leave()
        await asyncio.wait(attached, timeout=2 * FAREWELL_S)
        for task in (*attached, *watchers):
            task.cancel()

    def _notice(self, before: lifecycle.State, after: lifecycle.State) -> None:
        """Tell whoever sits at the terminal, or started this process, of a turn that was taken."""
        self._manager.hear(before, after)
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

    async def _prepare(self) -> tuple[LoadedDevice, ...] | None:
        """Look at the devices and load models; None if the node was stopped meanwhile."""
        config, loop = self._config, asyncio.get_running_loop()
        done: asyncio.Future[tuple[LoadedDevice, ...]] = loop.create_future()

        def say(headline: str, text: str) -> None:
            loop.call_soon_threadsafe(self._voice.say, headline, text)

        def prepare() -> None:
            try:
                found = devices.find_devices(config.device, torch.cuda, pynvml)
                loaded = loading.load_devices(config, found, self._state, say)
                loop.call_soon_threadsafe(_settle, done, loaded)
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
            self._manager.beat()
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


def _station(loaded: LoadedDevice, config: NodeConfig, clock: Clock, several: bool) -> Station:
    """A loaded device with a worker for each of its engines; one of several is told by its id."""
    device, probe = loaded.device, loaded.probe
    grip = devices.grip(device, torch.cuda, probe.energy_mj)
    told = mark(probe.hardware, device) if several else probe.hardware
    served = {}
    for model in loaded.models:
        engine, name = model.engine, model.profile.name
        worker = Worker(engine, f"{name}-{device.label}" if several else name, clock, grip)
        shape = Shape(engine.max_context, engine.model.vocab_size)
        served[model.offer.model_profile] = Served(model.offer, worker, engine.tokenizer, shape)
    machine = Machine(told, loading.engine_build(device.name))
    return Station(device, probe.hardware, machine, served, config.slots, config.threads)


def _broker(presence: Presence | None) -> dict[str, str]:
    return {} if presence is None else {"broker": presence.describe()}


def _stopped() -> NovaMeshError:
    return NovaMeshError(Code.UNAVAILABLE, "the owner of this node stopped it", "ask another node")


def _settle(
    done: asyncio.Future[tuple[LoadedDevice, ...]], result: tuple[LoadedDevice, ...]
) -> None:
    if not done.done():
        done.set_result(result)


def _fail(done: asyncio.Future[tuple[LoadedDevice, ...]], error: BaseException) -> None:
    if not done.done():
        done.set_exception(error)
