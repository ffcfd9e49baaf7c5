"""A production node whose coordinator is hostile: what comes down its stream, rightly signed.

Session, desk, admission, keeper and tokenizer are the node's own; the engine counts in virtual
time. After the hostile stream the node dials again, finds an honest coordinator, and must do its
job.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import structlog
from google.protobuf.message import DecodeError

from novamesh_engine.catalogue import locate
from novamesh_engine.tokenizer import Tokenizer
from novamesh_node import lifecycle
from novamesh_node.admission import Admission, House
from novamesh_node.attestor import Machine
from novamesh_node.clock import Clock
from novamesh_node.crew import Crew, Served, Station
from novamesh_node.descriptor import Advertiser
from novamesh_node.desk import SLOTS_MAX, Desk, Fixtures
from novamesh_node.devices import PROCESSOR
from novamesh_node.donations import Donations
from novamesh_node.keeper import Hands, Keeper
from novamesh_node.request import Shape as ModelShape
from novamesh_node.session import Line, Session
from novamesh_proto import wire
from novamesh_proto.envelope import ReplayWindow
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import (
    AttachAssignment,
    AttachChallenge,
    AttachRequest,
    AttachResponse,
    AttachWelcome,
)
from novamesh_proto.v1 import node_pb2
from support.clock import START_MS
from support.fake_engine import CONTEXT
from support.fuzz.sealing import repeatable
from support.offers import FACTS, SIGNER, Offers
from support.parties import COORDINATOR, HARDWARE, NETWORK, NODE, OFFER, PROFILE, digest
from support.sim.loop import START_S, VirtualLoop, end
from support.sim.node import Pace, SimEngine
from support.sim.process import Process

PAUSE_S: Final = 0.2  # between two messages
AGAIN_S: Final = 40.0  # until it has dialled again and done a job
OVER: Final = NovaMeshError(Code.UNAVAILABLE, "the hostile stream is over")
HONEST_FENCE: Final = 1_000_000
BUGS: Final = frozenset({"attempt failed", "a message was dropped", "the engine failed"})
REFUSED: Final = frozenset({"assignment dropped", "ack dropped", "declined", "gave up"})


class Hostile:
    """A stream on which a list of messages comes down, and then nothing."""

    certificate_key_digest = digest("certificate")

    def __init__(self, messages: list[bytes]) -> None:
        self._messages = messages
        self.said: list[AttachRequest] = []

    async def read(self) -> AttachResponse:
        """The next message, some time after the last."""
        await asyncio.sleep(PAUSE_S)
        if not self._messages:
            raise NovaMeshError(Code.UNAVAILABLE, "the stream ended")
        try:
            pb = node_pb2.AttachResponse.FromString(self._messages.pop(0))
        except DecodeError:
            raise NovaMeshError(Code.BAD_REQUEST, "gRPC refuses it") from None
        return wire.from_pb(AttachResponse, pb)

    async def write(self, message: AttachRequest) -> None:
        """What the node says; whatever it is, it can be sent."""
        wire.encode(message)
        self.said.append(message)

    async def end(self) -> None:
        """It says nothing more."""


class VisitedNode:
    """One life of a node."""

    def __init__(self) -> None:
        self.loop = VirtualLoop()
        self._surprises: list[str] = []
        self.loop.set_exception_handler(lambda _, what: self._surprises.append(str(what)))
        self._process = Process("node", self.loop)  # type: ignore[arg-type]
        self.advertiser = advertiser()
        self._streams: list[Hostile] = []
        self._hung_up = asyncio.Event()

    def meet(self, messages: list[bytes]) -> None:
        """Let a coordinator say something, and an honest one afterwards.

        Raises:
            NovaMeshError: what the node refused of it, in words or by hanging up.
            AssertionError: it failed, or does not work on.
        """
        try:
            with structlog.testing.capture_logs() as logs:
                ended = self.loop.run_until_complete(self._live(messages))
        finally:
            self._close()
        failures = [log for log in logs if log["event"] in BUGS]
        assert not failures, failures
        assert not self._surprises, self._surprises
        for log in logs:
            if log["event"] in REFUSED and log["message"] != OVER.message:
                raise NovaMeshError(Code(log["code"]), log["message"])
        if ended is not None and ended.code is not Code.UNAVAILABLE:
            raise ended

    async def _live(self, messages: list[bytes]) -> NovaMeshError | None:
        first = Hostile(messages)
        self._streams = [first]
        async with asyncio.TaskGroup() as tasks:
            desk, session = self._assemble(tasks)
            ended = await self._attached(session, tasks)
            desk.abandon(OVER)
            offers = Offers(self.advertiser, self._now_ms(), fence=HONEST_FENCE)
            offer = offers.make(sampling={"max_tokens": 2})
            stream = Hostile(given(offer.message, self._now_ms()))
            self._streams.append(stream)
            again = tasks.create_task(_quietly(session))
            await asyncio.sleep(AGAIN_S)
            again.cancel()
            assert any(said.attestation for said in stream.said), "an honest job is not done"
        return ended

    async def _attached(self, session: Session, tasks: asyncio.TaskGroup) -> NovaMeshError | None:
        """The hostile stream from its first message to its end; why it ended."""
        running = tasks.create_task(_quietly(session))
        hung_up = tasks.create_task(self._hung_up.wait())
        await asyncio.wait([running, hung_up], return_when=asyncio.FIRST_COMPLETED)
        fatal = running.result() if running.done() else None
        trouble = session.trouble
        for task in (running, hung_up):
            task.cancel()
        return fatal or trouble

    @contextlib.asynccontextmanager
    async def _dial(self) -> AsyncIterator[Hostile]:
        if not self._streams:
            await self.loop.create_future()
        try:
            yield self._streams.pop(0)
        finally:
            self.loop.call_later(0.01, self._hung_up.set)

    async def _join(self) -> None:
        raise NovaMeshError(Code.NOT_A_MEMBER, "nobody may join here")

    def _assemble(self, tasks: asyncio.TaskGroup) -> tuple[Desk, Session]:
        clock = Clock(self._now_ms, lambda: int(self.loop.time() * 1e9))
        house = House(NODE.node_id, COORDINATOR.node_id, NETWORK, {PROFILE: CONTEXT})
        worker: Any = SimEngine(self._process, Pace(token_s=0.1))
        encoder = tokenizer()
        served = Served(OFFER, worker, encoder, ModelShape(CONTEXT, encoder.vocab_size))
        machine = Machine(HARDWARE, "0.1.0 fuzz")
        station = Station(PROCESSOR, HARDWARE, machine, {PROFILE: served}, FACTS.slots)
        fixtures = Fixtures(
            Admission(house, ReplayWindow()), self.advertiser, SIGNER,
            Crew([station], SLOTS_MAX), lambda _id, _until: None, clock,
        )  # fmt: skip
        keeper = Keeper(FACTS.slots, clock, lifecycle.State())
        desk = Desk(fixtures, keeper, tasks)
        line = Line(self._dial, self._join, clock, random.Random(0))
        donations = Donations(Path(os.devnull))  # no folder: it keeps nothing
        session = Session(line, SIGNER, self.advertiser, desk, keeper.load, donations)
        keeper.hands = Hands(session.announce)
        keeper.apply(lifecycle.Loaded())
        return desk, session

    def _now_ms(self) -> int:
        return START_MS + round((self.loop.time() - START_S) * 1000)

    def _close(self) -> None:
        end(self.loop)


@functools.cache
def tokenizer() -> Tokenizer:
    """The built-in model's own."""
    return Tokenizer.load(locate("nova-pico"))


async def _quietly(session: Session) -> NovaMeshError | None:
    """Stay attached; why it cannot."""
    try:
        await session.run()
    except NovaMeshError as error:
        return error
    return None


def advertiser() -> Advertiser:
    """With the same HPKE key in every process: what was sealed to it once opens again."""
    made = Advertiser(NODE, NETWORK, FACTS, lambda least: least, lambda: 1)
    with repeatable("advertiser"):
        made.renew(START_MS)
    return made


def opening(now_ms: int = START_MS) -> tuple[AttachResponse, AttachResponse]:
    """The coordinator's half of the handshake."""
    challenge = AttachChallenge(digest("nonce"), now_ms)
    return AttachResponse(challenge=challenge), AttachResponse(welcome=AttachWelcome(bytes(16)))


def given(assignment: AttachAssignment, now_ms: int = START_MS) -> list[bytes]:
    """A stream on which one job comes down."""
    messages = (*opening(now_ms), AttachResponse(assignment=assignment))
    return [wire.encode(message) for message in messages]
