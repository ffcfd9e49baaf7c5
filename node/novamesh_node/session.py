"""Staying attached: one session after another with the coordinator, and what flows in each.

challenge → hello → welcome, then assignments, cancels and acks come down while the outbox is
written up. Rules: the clock is measured against the challenge before anything is signed; what can
heal is retried with growing, jittered pauses, what cannot ends the node with its reason; every
await on the other side has a deadline or is kept alive by the transport's pings. How a stream is
dialled is `link`'s business; what a message leads to is the desk's.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

import structlog

from novamesh_node.clock import Clock
from novamesh_node.descriptor import Advertiser
from novamesh_node.desk import Desk
from novamesh_node.donations import Donations
from novamesh_node.failures import first_error
from novamesh_node.outbox import Outbox
from novamesh_node.statements import Signer
from novamesh_proto import envelope
from novamesh_proto.errors import Code, NovaMeshError, parse_code
from novamesh_proto.limits import CLOCK_SKEW_MS
from novamesh_proto.messages import (
    AttachChallenge,
    AttachGoodbye,
    AttachHello,
    AttachRequest,
    AttachResponse,
    AttachWelcome,
    Donation,
    Envelope,
    IdleQuery,
    IdleReport,
    NodeLoad,
)

HANDSHAKE_S: Final = 10.0
IDLE_S: Final = 5.0
FAREWELL_S: Final = 2.0
STEADY_S: Final = 30.0  # a session that lasted this long makes the next pause short again
PAUSE_LEAST_S: Final = 0.5
# A restarted coordinator is back within seconds and needs its nodes first, so that nobody waits
# longer than this at the first tries, about half a minute. A thousand nodes are then some 270
# dials a second: nothing while the port is shut, and when it opens one TLS handshake each, spread
# by the jitter and far inside HANDSHAKE_S. A pool that is away longer is dialled more seldom.
PAUSE_EARLY_S: Final = 5.0
EARLY_TRIES: Final = 10
PAUSE_MOST_S: Final = 20.0

# Asking again with the same key, code and configuration would be refused again.
FATAL: Final = frozenset(
    {
        Code.BAD_CONFIG, Code.BAD_KEY, Code.BAD_SIGNATURE, Code.BANNED, Code.CONFLICT,
        Code.FORBIDDEN, Code.NOT_A_MEMBER, Code.PIN_MISMATCH, Code.UNSUPPORTED,
        Code.WRONG_AUDIENCE, Code.WRONG_NETWORK,
    }
)  # fmt: skip
# Fatal too, unless it worked before: a clock that was right once is set right again after a
# suspended laptop wakes, and one odd message of a pool's must not end its nodes.
FATAL_AT_FIRST: Final = frozenset(
    {Code.BAD_REQUEST, Code.NOT_FRESH, Code.TOO_LARGE, Code.WRONG_TYPE}
)

T = TypeVar("T", AttachChallenge, AttachWelcome)

_log = structlog.get_logger()


class Stream(Protocol):
    """One open Attach stream."""

    @property
    def certificate_key_digest(self) -> bytes:
        """SHA-256 of the public key of the certificate that the server showed, 32 bytes."""
        ...

    async def read(self) -> AttachResponse:
        """The next message. Raises NovaMeshError: why the stream ended."""
        ...

    async def write(self, message: AttachRequest) -> None:
        """Send a message. Raises NovaMeshError if the stream ended."""
        ...

    async def end(self) -> None:
        """Say that nothing more will be written."""
        ...


Dial = Callable[[], AbstractAsyncContextManager[Stream]]


@dataclass(frozen=True, slots=True)
class Line:
    """How the pool is reached: a stream, and membership where it is refused for want of it."""

    dial: Dial
    join: Callable[[], Awaitable[None]]
    clock: Clock
    rng: random.Random


def pause_s(failures: int, rng: random.Random) -> float:
    """Seconds to wait after that many failures in a row: doubled each time, half of it jitter."""
    cap = min(PAUSE_EARLY_S, PAUSE_MOST_S) if failures < EARLY_TRIES else PAUSE_MOST_S
    most = min(cap, PAUSE_LEAST_S * 2.0 ** min(failures, 16))
    return max(PAUSE_LEAST_S, most * rng.uniform(0.5, 1.0))


def check_clock(here_ms: int, there_ms: int) -> None:
    """Compare our wall clock with the coordinator's.

    Raises:
        NovaMeshError: NOT_FRESH with the measured offset if nobody would take what we sign.
    """
    ahead_ms = here_ms - there_ms
    if abs(ahead_ms) > CLOCK_SKEW_MS:
        direction = "ahead of" if ahead_ms > 0 else "behind"
        raise NovaMeshError(
            Code.NOT_FRESH,
            f"this machine's clock is {abs(ahead_ms) / 1000:.0f} s {direction} the coordinator's",
            "set the clock (timedatectl set-ntp true), then start the node again",
        )


class Session:
    """Keeps the node attached until it is told to leave or cannot go on."""

    def __init__(
        self,
        line: Line,
        signer: Signer,
        advertiser: Advertiser,
        desk: Desk,
        load: Callable[[], NodeLoad],
        donations: Donations,
    ) -> None:
        self._line = line
        self._signer = signer
        self._advertiser = advertiser
        self._desk = desk
        self._load = load
        self._donations = donations
        self._clock = line.clock
        self._outbox: Outbox | None = None
        self._shown: Envelope | None = None  # the descriptor that the pool was sent last
        self._idle: asyncio.Future[IdleReport] | None = None
        self._leaving = False
        self._joined = False
        self._reported = ""
        self._next_try_ms = 0  # monotonic clock
        self.attached = asyncio.Event()  # set at the first welcome and kept
        # Our clock minus the coordinator's at the last challenge; None before the first.
        self.offset_ms: int | None = None
        self.trouble: NovaMeshError | None = None  # why we are not attached now

    @property
    def connected(self) -> bool:
        """Whether a session is open now."""
        return self._outbox is not None and not self._outbox.closed

    @property
    def next_try_s(self) -> int:
        """Seconds until the pool is dialled again, rounded up; 0 while it is, or attached."""
        return max(0, -((self._next_try_ms - self._clock.monotonic_ms()) // -1000))

    async def run(self) -> None:
        """One session after another; returns after `leave`.

        Raises:
            NovaMeshError: what cannot heal.
        """
        failures = 0
        while not self._leaving:
            begun_ms = self._clock.monotonic_ms()
            try:
                await self._attach()
            except NovaMeshError as error:
                if self._leaving:
                    return
                if await self._mend(error):
                    continue
            now_ms = self._clock.monotonic_ms()
            failures = 0 if now_ms - begun_ms > STEADY_S * 1000 else failures
            wait_s = pause_s(failures, self._line.rng)
            failures += 1
            self._report(failures, wait_s)
            self._next_try_ms = now_ms + round(wait_s * 1000)
            await asyncio.sleep(wait_s)

    def announce(self) -> None:
        """Tell the pool how much more this node takes."""
        if self._outbox is not None:
            self._outbox.post(AttachRequest(load=self._load()))

    def donate(self, donation: Donation) -> None:
        """Tell the pool of work that it did not ask for; if it is away, the next session does."""
        if self._outbox is not None:
            self._outbox.post(AttachRequest(donation=donation))

    def advertise(self) -> None:
        """Renew the descriptor if one is due, and send it if it was not. Raises STORAGE."""
        newest = self._advertiser.current(self._clock.wall_ms())
        if newest is not self._shown and self._outbox is not None:
            self._shown = newest
            self._outbox.post(AttachRequest(descriptor=newest))

    async def ask_idle(self) -> IdleReport:
        """Ask the coordinator why there is no work.

        Raises:
            NovaMeshError: UNAVAILABLE if we are not attached or get no answer.
        """
        if self._outbox is None or not self.connected:
            raise self.trouble or NovaMeshError(Code.UNAVAILABLE, "the node is not attached")
        if self._idle is None or self._idle.done():
            self._idle = asyncio.get_running_loop().create_future()
            self._outbox.post(AttachRequest(idle_query=IdleQuery()))
        try:
            async with asyncio.timeout(IDLE_S):
                return await asyncio.shield(self._idle)
        except TimeoutError:
            raise NovaMeshError(Code.UNAVAILABLE, "the coordinator did not answer") from None

    def leave(self) -> None:
        """Write what waits, then end; `run` returns within FAREWELL_S."""
        self._leaving = True
        if self._outbox is not None:
            self._outbox.end()

    async def _attach(self) -> None:
        """One session from dialling to its end."""
        async with self._line.dial() as stream:
            try:
                async with asyncio.timeout(HANDSHAKE_S):
                    welcome = await self._shake_hands(stream)
            except TimeoutError:
                message = f"the coordinator did not welcome us within {HANDSHAKE_S:g} s"
                raise NovaMeshError(Code.UNAVAILABLE, message) from None
            outbox = Outbox()
            # From here to the first write nothing yields: the backlog and what the attempts put
            # into the new outbox fit together without gap or repeat.
            backlog = self._desk.resume(outbox, welcome.resume)
            self._outbox, self.trouble, self._reported = outbox, None, ""
            self.attached.set()
            _log.info("attached", session=welcome.session.hex()[:8], resumed=len(welcome.resume))
            if self._leaving:
                outbox.end()
            try:
                await self._converse(stream, outbox, backlog)
            except NovaMeshError as error:
                # We hold one session at a time, so a newer one is somebody else's.
                raise _taken_over() if error.code is Code.STALE else error from None
            finally:
                await outbox.close()

    async def _shake_hands(self, stream: Stream) -> AttachWelcome:
        challenge = await _expect(stream, AttachChallenge)
        now_ms = self._clock.wall_ms()
        self.offset_ms = now_ms - challenge.now_ms
        check_clock(now_ms, challenge.now_ms)
        signer = self._signer
        self._shown = self._advertiser.current(now_ms)
        hello = AttachHello(
            header=envelope.header(signer.key, signer.network, (signer.coordinator,), now_ms),
            nonce=challenge.nonce,
            certificate_key_digest=stream.certificate_key_digest,
            descriptor=self._shown,
            running=self._desk.listing(),
        )
        await stream.write(AttachRequest(hello=envelope.seal(hello, signer.key)))
        return await _expect(stream, AttachWelcome)

    async def _converse(
        self, stream: Stream, outbox: Outbox, backlog: tuple[AttachRequest, ...]
    ) -> None:
        """Listen and speak until one of them fails, which both do when the stream ends."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._listen(stream), name="session-reader")
                tasks.create_task(self._speak(stream, outbox, backlog), name="session-writer")
        except BaseExceptionGroup as group:
            raise first_error(group) from None

    async def _listen(self, stream: Stream) -> None:
        while True:
            message = await stream.read()
            try:
                self._hear(message)
            except NovaMeshError:
                raise
            except Exception as bug:  # boundary of a message: no message may end the node
                _log.error("a message was dropped", kind=type(bug).__name__)

    def _hear(self, message: AttachResponse) -> None:
        if message.assignment is not None:
            self._desk.take(message.assignment)
        elif message.cancel is not None:
            self._desk.cancel(message.cancel)
        elif message.ack is not None:
            self._desk.acknowledge(message.ack)
        elif message.idle_report is not None:
            if self._idle is not None and not self._idle.done():
                self._idle.set_result(message.idle_report)
        elif message.goodbye is not None:
            raise _farewell(message.goodbye)
        elif message.probe is not None and self._outbox is not None:
            self._outbox.post(AttachRequest(echo=message.probe))
        elif message.donation_taken is not None:
            self._donations.drop(message.donation_taken.job)

    async def _speak(
        self, stream: Stream, outbox: Outbox, backlog: tuple[AttachRequest, ...]
    ) -> None:
        await stream.write(AttachRequest(load=self._load()))
        donated = (AttachRequest(donation=each) for each in self._donations.pending())
        for message in (*backlog, *donated):
            await stream.write(message)
        while (next_message := await outbox.next()) is not None:
            await stream.write(next_message)
        await stream.end()
        # Whoever listens now ends the stream, which ends us sooner than this.
        await asyncio.sleep(FAREWELL_S)
        raise NovaMeshError(Code.UNAVAILABLE, "the coordinator stopped listening")

    async def _mend(self, error: NovaMeshError) -> bool:
        """Whether the cause is gone and we can try again at once; raises what cannot heal."""
        if error.code is Code.NOT_A_MEMBER and not self._joined:
            try:
                await self._line.join()
                self._joined = True
                return True
            except NovaMeshError as refused:
                error = refused
        self.trouble = error
        if error.code is Code.STALE:
            with contextlib.suppress(NovaMeshError):  # a full disk heals, then this works
                self._advertiser.renew(self._clock.wall_ms())
        trial = not self.attached.is_set()
        fatal = error.code in FATAL or (trial and error.code in FATAL_AT_FIRST)
        if fatal:
            raise error
        return False

    def _report(self, failures: int, wait_s: float) -> None:
        """Tell new trouble, and the same one again after 2, 4, 8… failures: alive, but no flood."""
        error = self.trouble
        if error is None:
            return
        said, self._reported = self._reported, error.message
        tell = said != error.message or failures.bit_count() == 1
        (_log.warning if tell else _log.debug)(
            "not attached, trying again", code=error.code.value, error=error.message,
            hint=error.hint or None, failures=failures, next_try_s=round(wait_s, 1),
        )  # fmt: skip


async def _expect(stream: Stream, kind: type[T]) -> T:
    """The next message, which must be of that kind or a goodbye."""
    message = await stream.read()
    for value in (message.challenge, message.welcome):
        if isinstance(value, kind):
            return value
    if message.goodbye is not None:
        raise _farewell(message.goodbye)
    raise NovaMeshError(Code.WRONG_TYPE, f"the coordinator did not send its {kind.__name__}")


def _farewell(goodbye: AttachGoodbye) -> NovaMeshError:
    code = parse_code(goodbye.code)
    if code is Code.BANNED:
        reason = goodbye.message or "without a reason"
        return NovaMeshError(code, f"this node is banned: {reason}", "ask the pool's owner")
    return NovaMeshError(code, f"the coordinator ended the session: {goodbye.message or code}")


def _taken_over() -> NovaMeshError:
    return NovaMeshError(
        Code.CONFLICT, "another process attached with this node's key",
        "stop it, or move node.key away here: every machine has a key of its own",
    )  # fmt: skip
