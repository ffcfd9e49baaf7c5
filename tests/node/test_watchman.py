"""One device that fails costs its slots and its jobs; the last one costs the node."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace

import pytest

from novamesh_engine.request import Request, SamplingParams
from novamesh_node import lifecycle
from novamesh_node.clock import Clock
from novamesh_node.crew import Crew, Station
from novamesh_node.descriptor import Advertiser
from novamesh_node.desk import SLOTS_MAX
from novamesh_node.devices import DeviceLostError
from novamesh_node.keeper import Hands, Keeper
from novamesh_node.notices import Notice
from novamesh_node.watchman import Watchman
from novamesh_node.worker import Ticket
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import ProfileDigest
from support.clock import START_MS
from support.fake_crew import Broken, station
from support.fake_engine import FakeEngine
from support.offers import advertiser, descriptor_of
from support.parties import OFFER, PROFILE, digest

ONE, TWO = "GPU-1a2b3c4d-0000", "GPU-9f8e7d6c-0000"
REQUEST = Request("a", (1, 2, 3), SamplingParams(max_tokens=10**5))
FAULT = "a device of this node failed: AcceleratorError"
BOTH = (OFFER, replace(OFFER, model_profile=ProfileDigest(digest("other")), name="other"))


@dataclass
class Device:
    """A station whose engine fails when it is told to."""

    name: str
    engine: FakeEngine = field(default_factory=FakeEngine)
    switch: Broken = field(default_factory=Broken)

    def __post_init__(self) -> None:
        self.engine.hook = self.fail_if_broken

    def fail_if_broken(self) -> None:
        if self.switch.now:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def station(self) -> Station:
        """Two models, so that two workers share the device; the first one's engine fails."""
        return station(self.name, self.engine, offers=BOTH, slots=4, broken=self.switch)


@dataclass
class Node:
    """What a watchman reaches."""

    devices: list[Device]
    crew: Crew
    keeper: Keeper
    advertiser: Advertiser
    told: list[Notice]
    announced: list[int]
    watches: list[asyncio.Task[None]]
    lost: asyncio.Event

    async def settle(self, slots: int) -> None:
        async with asyncio.timeout(5):
            await self.lost.wait()
        assert self.keeper.slots == slots


@contextlib.asynccontextmanager
async def node(*names: str) -> AsyncIterator[Node]:
    devices = [Device(name) for name in names]
    crew = Crew([device.station() for device in devices], SLOTS_MAX)
    keeper = Keeper(crew.slots, Clock(lambda: START_MS), lifecycle.State(ready=True))
    source, told, announced = advertiser(), list[Notice](), list[int]()
    keeper.hands = Hands(lambda: announced.append(keeper.load().free_slots))
    lost = asyncio.Event()

    def tell(notice: Notice) -> None:
        told.append(notice)
        lost.set()

    watchman = Watchman(crew, keeper, source, tell)
    pairs = [(each, worker) for each in crew.stations for worker in each.workers]
    for _, worker in pairs:
        worker.start()
    watches = [asyncio.create_task(watchman.watch(*pair)) for pair in pairs]
    try:
        yield Node(devices, crew, keeper, source, told, announced, watches, lost)
    finally:
        for watch in watches:
            watch.cancel()
        await asyncio.gather(*watches, return_exceptions=True)
        await asyncio.gather(*(worker.stop() for _, worker in pairs))


async def read(ticket: Ticket) -> None:
    """To the end, which is an error."""
    async with asyncio.timeout(5):
        while True:
            await ticket.next()


async def test_a_device_that_fails_takes_its_engines_its_slots_and_its_jobs() -> None:
    async with node(ONE, TWO) as at:
        one, two = at.crew.stations
        doomed = [
            worker.submit(replace(REQUEST, id=str(i))) for i, worker in enumerate(one.workers)
        ]
        spared = two.served[PROFILE].worker.submit(REQUEST)
        at.devices[0].switch.now = True
        for ticket in doomed:  # of the engine that failed, and of its neighbour on the device
            with pytest.raises(DeviceLostError) as caught:
                await read(ticket)
            assert caught.value.message == FAULT
        await at.settle(4)
        assert (at.keeper.slots, at.announced) == (4, [4])
        assert at.told == [("lost", f"GPU-1a2b3c4d is out: {FAULT}; 4 slots are left")]
        assert all(worker.fault is not None and worker.fault.done() for worker in one.workers)
        assert len((await spared.next()).step.token_ids) == 1
        assert at.advertiser.due(START_MS)
        assert descriptor_of(at.advertiser).message.slots == 4
        assert not at.advertiser.due(START_MS)
        assert at.crew.assign(PROFILE) is two


async def test_work_for_a_device_that_is_out_is_refused_at_once() -> None:
    async with node(ONE, TWO) as at:
        worker = at.crew.stations[0].served[PROFILE].worker
        at.devices[0].switch.now = True
        worker.submit(REQUEST)
        await at.settle(4)
        with pytest.raises(DeviceLostError):
            worker.submit(replace(REQUEST, id="b"))


async def test_a_failure_that_leaves_the_device_well_costs_nothing_but_its_job() -> None:
    async with node(ONE, TWO) as at:
        device, worker = at.devices[0], at.crew.stations[0].served[PROFILE].worker

        def stumble() -> None:
            device.engine.hook = lambda: None
            raise RuntimeError("a kernel did not compile")

        device.engine.hook = stumble
        with pytest.raises(NovaMeshError) as caught:
            await worker.submit(REQUEST).next()
        assert caught.value.code is Code.INTERNAL
        assert len((await worker.submit(replace(REQUEST, id="b")).next()).step.token_ids) == 1
        assert (at.keeper.slots, at.told) == (8, [])


async def test_books_that_disagree_take_their_device_out_too() -> None:
    async with node(ONE, TWO) as at:
        at.devices[1].engine.corrupt = True
        at.devices[1].engine.hook = lambda: 1 / 0  # type: ignore[assignment, return-value]
        at.crew.stations[1].workers[0].submit(REQUEST)
        await at.settle(4)
        assert at.told == [
            ("lost", "GPU-9f8e7d6c is out: the engine failed: RuntimeError; 4 slots are left")
        ]


@pytest.mark.parametrize("names", [(ONE,), (ONE, TWO)])
async def test_the_last_device_takes_the_node_with_it(names: tuple[str, ...]) -> None:
    async with node(*names) as at:
        for device, each in zip(at.devices, at.crew.stations, strict=True):
            device.switch.now = True
            each.workers[0].submit(REQUEST)
        done, _ = await asyncio.wait(at.watches, timeout=5, return_when=asyncio.FIRST_EXCEPTION)
        errors = [task.exception() for task in done if task.exception() is not None]
        assert [type(error) for error in errors] == [DeviceLostError]
        assert len(at.told) == len(names) - 1
