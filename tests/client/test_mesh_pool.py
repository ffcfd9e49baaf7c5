"""Without a coordinator one node is aimed at, from what nodes sign themselves, and no other."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest

from novamesh import mesh_pool
from novamesh.candidates import verify_candidates
from novamesh.clock import Clock
from novamesh.discovery import Finder
from novamesh.job_transport import Wanted
from novamesh.known_nodes import KnownNodes
from novamesh.mesh_pool import MeshPool
from novamesh_proto.envelope import Verified
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import (
    Envelope,
    JobId,
    JobPath,
    NodeDescriptor,
    NodeId,
    ProfileDigest,
    WatchResponse,
)
from novamesh_proto.node_table import Source
from support.answers import MODEL
from support.clock import START_MS, ManualClock
from support.fake_answer import NETWORK, OTHER_PICO, PICO
from support.found_nodes import advert
from support.parties import CLIENT, OFFER, digest, party

NAMES = ("one", "two", "three")
ONE, TWO, THREE = (party(name) for name in NAMES)
WANTED = Wanted(PICO, 100, 64)
JOB = JobId(bytes(32))


@dataclass
class Line:
    """A line to a node, and the connection on it."""

    node: NodeId
    failure: NovaMeshError | None = None
    path: JobPath = JobPath.TUNNEL
    rtt_s: float = 0.04
    told: list[Any] = field(default_factory=list)

    @property
    def connection(self) -> Line:
        return self

    async def submit(self, job: Any, reservations: Any) -> Any:
        self.told.append((job, reservations))

    async def acknowledge(self, ack: Any) -> None:
        self.told.append(ack)

    async def watch(self, job: JobId, attempt: int, chunk: int) -> AsyncGenerator[WatchResponse]:
        yield WatchResponse()
        if self.failure is not None:
            raise self.failure

    submit_receipt = cancel = get_job = acknowledge


@dataclass
class Lines:
    """Who opens lines; nobody answers at those that are `away`."""

    away: set[NodeId] = field(default_factory=set)
    path: JobPath = JobPath.TUNNEL
    asked: list[NodeId] = field(default_factory=list)
    opened: list[Line] = field(default_factory=list)
    dropped: list[NodeId] = field(default_factory=list)

    async def open(self, descriptor: Verified[NodeDescriptor], *, insist: bool = False) -> Line:
        assert insist, "there is no other way"
        self.asked.append(descriptor.issuer)
        if descriptor.issuer in self.away:
            raise NovaMeshError(Code.UNAVAILABLE, "out of reach")
        self.opened.append(Line(descriptor.issuer, path=self.path))
        return self.opened[-1]

    async def drop(self, node: NodeId, line: Line) -> None:
        self.dropped.append(node)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def lines() -> Lines:
    return Lines()


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mesh_pool, "FIND_S", 0.02)


def pool(folder: Path, clock: ManualClock, lines: Lines, *told: Envelope) -> MeshPool:
    """A pool of whoever said so; what is not to be believed is not there."""
    time = Clock(clock.now_ms, clock.monotonic)
    finder = Finder(NETWORK, time, (), KnownNodes(folder / "nodes.json"), lambda _n, _s: None)
    for sealed in told:
        with contextlib.suppress(NovaMeshError):
            finder.table.take(sealed, Source.LIBP2P, clock.now_ms())
    return MeshPool(finder, cast(Any, lines), NETWORK, CLIENT, time)


@pytest.mark.parametrize("path", [JobPath.DIRECT, JobPath.TUNNEL])
async def test_who_was_reached_at_its_own_address_is_known_after_a_restart(
    path: JobPath, tmp_path: Path, clock: ManualClock, lines: Lines
) -> None:
    lines.path = path
    await pool(tmp_path, clock, lines, advert(ONE, "198.51.100.1:7702")).aim(WANTED)
    known = KnownNodes(tmp_path / "nodes.json").addresses()
    assert known == (((ONE.node_id, ("198.51.100.1:7702",)),) if path is JobPath.DIRECT else ())


async def test_what_nodes_say_is_what_is_served(
    tmp_path: Path, clock: ManualClock, lines: Lines
) -> None:
    here = pool(tmp_path, clock, lines, advert(ONE), advert(TWO, free_slots=1))
    model = await here.find_model("nova-pico")
    assert (model.model_profile, model.nodes, model.free_slots) == (PICO, 2, 3)


async def test_a_model_is_waited_for_where_nodes_with_others_are_heard_of_first(
    tmp_path: Path, clock: ManualClock, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = replace(OFFER, model_profile=OTHER_PICO, name="another")
    here = pool(tmp_path, clock, lines, advert(ONE, models=(other,)))
    with pytest.raises(NovaMeshError, match="no model 'nova-pico'"):
        await here.find_model("nova-pico")
    monkeypatch.setattr(mesh_pool, "FIND_S", 20.0)
    waiting = asyncio.create_task(here.find_model("nova-pico"))
    await asyncio.sleep(0.01)
    await here._finder._take(advert(TWO), Source.LIBP2P)
    assert (await waiting).model_profile == PICO


async def test_nobody_found_is_said_with_the_way_out(
    tmp_path: Path, clock: ManualClock, lines: Lines
) -> None:
    with pytest.raises(NovaMeshError) as caught:
        await pool(tmp_path, clock, lines).find_model("nova-pico")
    assert caught.value.code is Code.NO_CAPACITY
    assert "client.nodes" in caught.value.hint


async def test_one_node_is_aimed_at_and_named(
    tmp_path: Path, clock: ManualClock, lines: Lines
) -> None:
    here = pool(tmp_path, clock, lines, advert(ONE), advert(TWO))
    await here.aim(WANTED)
    assert here.coordinator in {ONE.node_id, TWO.node_id}
    assert here.header().audience == (here.coordinator,)
    assert (here.path, here.rtt_s) == (JobPath.TUNNEL, 0.04)
    chosen = verify_candidates(await here.match(WANTED), MODEL, NETWORK, START_MS)
    assert [found.issuer for found, _ in chosen] == [here.coordinator]
    assert lines.asked == [here.coordinator]


async def test_what_is_forged_old_or_foreign_is_never_chosen(
    tmp_path: Path, clock: ManualClock, lines: Lines
) -> None:
    good = advert(ONE)
    forged = Envelope(good.payload_type, advert(TWO).payload, good.signatures)
    bad = (
        forged,
        advert(TWO, now_ms=START_MS - 600_000),
        advert(TWO, network="elsewhere"),
        advert(TWO, life_ms=3_600_000),
    )
    here = pool(tmp_path, clock, lines, *bad, good)
    for _ in range(10):
        await here.aim(WANTED)
        assert here.coordinator == ONE.node_id
    clock.advance(300)
    with pytest.raises(NovaMeshError) as caught:
        await here.aim(WANTED)
    assert caught.value.code in {Code.NO_CAPACITY, Code.MODEL_NOT_FOUND}


async def test_the_quick_and_free_are_asked_first(
    tmp_path: Path, clock: ManualClock, lines: Lines
) -> None:
    here = pool(tmp_path, clock, lines, advert(ONE, free_slots=0), advert(TWO))
    await here.aim(WANTED)
    assert here.coordinator == TWO.node_id


async def test_who_cannot_be_reached_is_passed_over(
    tmp_path: Path, clock: ManualClock, lines: Lines
) -> None:
    lines.away = {ONE.node_id, TWO.node_id}
    here = pool(tmp_path, clock, lines, *map(advert, (ONE, TWO, THREE)))
    await here.aim(WANTED)
    assert here.coordinator == THREE.node_id
    lines.away.add(THREE.node_id)
    with pytest.raises(NovaMeshError) as caught:
        await pool(tmp_path, clock, lines, *map(advert, (ONE, TWO, THREE))).aim(WANTED)
    assert caught.value.code is Code.UNAVAILABLE


async def test_no_more_than_so_many_are_dialled_for_one_job(
    tmp_path: Path, clock: ManualClock, lines: Lines
) -> None:
    many = [party(f"away {number}") for number in range(30)]
    lines.away = {key.node_id for key in many}
    with pytest.raises(NovaMeshError):
        await pool(tmp_path, clock, lines, *map(advert, many)).aim(WANTED)
    assert len(lines.asked) == mesh_pool.TRIED_MAX


@pytest.mark.parametrize("code", [Code.BUSY, Code.POLICY, Code.UNAVAILABLE, Code.CANNOT_OPEN])
async def test_who_declines_is_passed_over(
    tmp_path: Path, clock: ManualClock, lines: Lines, code: Code
) -> None:
    here = pool(tmp_path, clock, lines, advert(ONE), advert(TWO))
    await here.aim(WANTED)
    first = here.coordinator
    refusal = NovaMeshError(code, "no")
    assert here.may_try_again(NovaMeshError(Code.BUSY, "no")) is False
    assert here.may_ask_another(refusal)
    await here.aim(WANTED)
    assert here.coordinator != first


async def test_a_refusal_that_everybody_would_give_ends_it(
    tmp_path: Path, clock: ManualClock, lines: Lines
) -> None:
    here = pool(tmp_path, clock, lines, advert(ONE), advert(TWO))
    assert not here.may_ask_another(NovaMeshError(Code.BUSY, "nobody was asked yet"))
    await here.aim(WANTED)
    assert not here.may_ask_another(NovaMeshError(Code.TOO_LARGE, "no"))
    nothing = Wanted(ProfileDigest(digest("unknown")), 1, 1)
    with pytest.raises(NovaMeshError) as caught:
        await here.aim(nothing)
    assert caught.value.code is Code.MODEL_NOT_FOUND


async def test_nodes_that_lost_the_answer_are_not_asked_again(
    tmp_path: Path, clock: ManualClock, lines: Lines
) -> None:
    here = pool(tmp_path, clock, lines, advert(ONE), advert(TWO))
    await here.aim(Wanted(PICO, 100, 64, (ONE.node_id,)))
    assert here.coordinator == TWO.node_id


async def test_everything_goes_to_the_node_and_nobody_else(
    tmp_path: Path, clock: ManualClock, lines: Lines
) -> None:
    here = pool(tmp_path, clock, lines, advert(ONE))
    with pytest.raises(NovaMeshError):
        await here.get_job(JOB)
    await here.aim(WANTED)
    await here.submit(cast(Any, "job"), [bytes(16)])
    for call in (here.acknowledge, here.submit_receipt, here.cancel, here.get_job):
        await call(cast(Any, "said"))
    assert lines.opened[0].told == [("job", ()), *["said"] * 4]


async def _read(here: MeshPool) -> Code | None:
    try:
        async with contextlib.aclosing(here.watch(JOB, 0, 0)) as events:
            async for _ in events:
                pass
    except NovaMeshError as error:
        return error.code
    return None


async def test_a_line_that_breaks_is_dialled_anew(
    tmp_path: Path, clock: ManualClock, lines: Lines
) -> None:
    here = pool(tmp_path, clock, lines, advert(ONE))
    await here.aim(WANTED)
    lines.opened[0].failure = NovaMeshError(Code.UNAVAILABLE, "broken")
    assert await _read(here) is Code.UNAVAILABLE
    assert lines.dropped == [ONE.node_id]
    assert await _read(here) is None
    assert len(lines.opened) == 2


async def test_a_node_that_does_not_know_the_job_any_more_has_lost_it(
    tmp_path: Path, clock: ManualClock, lines: Lines
) -> None:
    here = pool(tmp_path, clock, lines, advert(ONE))
    await here.aim(WANTED)
    lines.opened[0].failure = NovaMeshError(Code.NOT_FOUND, "no such job")
    assert await _read(here) is Code.NODE_LOST
