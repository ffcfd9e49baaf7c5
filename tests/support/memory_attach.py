"""An Attach stream with both ends in memory, and a pool that can be away."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from novamesh_node.clock import Clock
from novamesh_node.donations import Donations
from novamesh_node.session import Line, Session
from novamesh_proto import envelope
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import (
    AttachChallenge,
    AttachHello,
    AttachRequest,
    AttachResponse,
    AttachWelcome,
    NodeLoad,
    RunningAttempt,
)
from support.clock import START_MS
from support.offers import SIGNER, advertiser
from support.parties import COORDINATOR, NETWORK, NODE, digest

CERTIFICATE = digest("certificate")
CHALLENGE = AttachChallenge(digest("nonce"), START_MS)
WELCOME = AttachWelcome(bytes(16))
ENDED = NovaMeshError(Code.UNAVAILABLE, "the stream ended")


class Wire:
    """One stream with both ends in memory."""

    def __init__(self) -> None:
        self.down: asyncio.Queue[AttachResponse | NovaMeshError] = asyncio.Queue()
        self.up: asyncio.Queue[AttachRequest] = asyncio.Queue()
        self.certificate_key_digest = CERTIFICATE
        self.ended = asyncio.Event()
        self.hung_up = asyncio.Event()

    async def read(self) -> AttachResponse:
        message = await self.down.get()
        if isinstance(message, NovaMeshError):
            raise message
        return message

    async def write(self, message: AttachRequest) -> None:
        await self.up.put(message)

    async def end(self) -> None:
        self.ended.set()

    def say(self, **message: Any) -> None:
        self.down.put_nowait(AttachResponse(**message))

    async def hear(self) -> AttachRequest:
        return await asyncio.wait_for(self.up.get(), 5)

    async def welcome(self, welcome: AttachWelcome = WELCOME) -> AttachHello:
        """The coordinator's half of the handshake."""
        self.say(challenge=CHALLENGE)
        sealed = (await self.hear()).hello
        assert sealed is not None
        hello = envelope.open(
            sealed, AttachHello, network=NETWORK, audience=COORDINATOR.node_id, now_ms=START_MS
        )
        assert hello.issuer == NODE.node_id
        self.say(welcome=welcome)
        return hello.message


@dataclass
class FakeDesk:
    """What the session hands on."""

    running: tuple[RunningAttempt, ...] = ()
    backlog: tuple[AttachRequest, ...] = ()
    heard: list[object] = field(default_factory=list)
    seen: asyncio.Event = field(default_factory=asyncio.Event)
    bug: Exception | None = None

    def listing(self) -> tuple[RunningAttempt, ...]:
        return self.running

    def resume(self, outbox: object, wanted: object) -> tuple[AttachRequest, ...]:
        self.heard.append(wanted)
        return self.backlog

    def take(self, message: object) -> None:
        self._note(message)

    def cancel(self, message: object) -> None:
        self._note(message)

    def acknowledge(self, message: object) -> None:
        self._note(message)

    def _note(self, message: object) -> None:
        if self.bug is not None:
            bug, self.bug = self.bug, None
            raise bug
        self.heard.append(message)
        self.seen.set()


class Pool:
    """A coordinator that can be away: each dial takes the next wire or error."""

    def __init__(self) -> None:
        self.dials: asyncio.Queue[Wire | NovaMeshError] = asyncio.Queue()
        self.joins = 0
        self.refusal: NovaMeshError | None = None
        self.desk = FakeDesk()
        self.advertiser = advertiser()
        self.wall_ms = START_MS
        line = Line(self.dial, self.join, Clock(lambda: self.wall_ms), NoJitter())
        self.session = Session(
            line,
            SIGNER,
            self.advertiser,
            self.desk,  # type: ignore[arg-type]
            lambda: NodeLoad(4, True),
            Donations(Path(os.devnull)),  # no folder: it keeps nothing
        )

    @contextlib.asynccontextmanager
    async def dial(self) -> AsyncIterator[Wire]:
        got = await self.dials.get()
        if isinstance(got, NovaMeshError):
            raise got
        try:
            yield got
        finally:
            got.hung_up.set()

    async def join(self) -> None:
        self.joins += 1
        if self.refusal is not None:
            raise self.refusal

    def wire(self) -> Wire:
        made = Wire()
        self.dials.put_nowait(made)
        return made


class NoJitter(random.Random):
    def uniform(self, a: float, b: float) -> float:
        return b
