"""What all gRPC services share: server options, the door every call goes through, refusals.

Order of checks: size (by gRPC) → a slot among the guests → address's bucket → the message in time
(these three by `doorstep`) → deadline → envelope (size, signature, network, audience, freshness,
replay) → party's bucket → core. A refusal is a gRPC status by the one table of
errors, with an ErrorDetail in the trailing metadata. Only the services know protobuf classes.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import grpc
import grpc.aio
import structlog
from google.protobuf.message import Message

from novamesh_coordinator.bouncer import Bouncer
from novamesh_coordinator.core import PoolIdentity
from novamesh_coordinator.hub import Hub
from novamesh_coordinator.metrics import Metrics
from novamesh_coordinator.sequencer import Clock, Sequencer
from novamesh_coordinator.store import Store
from novamesh_coordinator.verifier import Verifier
from novamesh_proto import server_terms, wire
from novamesh_proto.buckets import Buckets, Rate
from novamesh_proto.envelope import Signable, Verified
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.guests import Guests
from novamesh_proto.messages import Envelope
from novamesh_proto.node_table import NodeTable

T = TypeVar("T", bound=Signable)
DEADLINE_S_MAX: Final = 600.0
DEADLINE_SLACK_S: Final = 30.0  # clients allow a job's whole life and a little for the way
PENDING_MAX: Final = 8_192

SERVER_OPTIONS: Final = (
    *server_terms.SERVER_OPTIONS,
    # Calls that wait to be taken; gRPC would drop any of them, honest ones too, from a thousand on.
    ("grpc.server.max_pending_requests", PENDING_MAX),
    ("grpc.server.max_pending_requests_hard_limit", 2 * PENDING_MAX),
)

Context = grpc.aio.ServicerContext[Any, Any]
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Limits:
    """How often somebody may ask, one address, one party that proved itself; and what one address
    may have open. An address is one of IPv4, or 64 bits of IPv6."""

    address: Rate = field(default=Rate(200, 600))
    party: Rate = field(default=Rate(100, 400))
    stream: Rate = field(default=Rate(4_000, 8_000))  # messages of one node's stream
    donor: Rate = field(default=Rate(1, 256))  # donations that one node tells of
    connections: int = 400  # of one address, which several members may share
    guests: int = 256  # calls of one address that are begun and not yet heard
    all_guests: int = 2_048


@dataclass(frozen=True, slots=True)
class Door:
    """What every service needs; one a coordinator."""

    identity: PoolIdentity
    key_digest: bytes  # of the TLS certificate that nodes and clients see
    verifier: Verifier
    sequencer: Sequencer
    hub: Hub
    store: Store
    clock: Clock
    metrics: Metrics
    version: str
    limits: Limits = field(default_factory=Limits)
    addresses: Buckets = field(init=False)
    guests: Guests = field(init=False)
    bouncer: Bouncer = field(init=False)
    parties: Buckets = field(init=False)
    donors: Buckets = field(init=False)
    table: NodeTable = field(init=False)  # who is here, by a stream to us or by a broker

    def __post_init__(self) -> None:
        limits = self.limits
        object.__setattr__(self, "table", NodeTable(self.identity.network))
        object.__setattr__(self, "addresses", Buckets(limits.address))
        bouncer = Bouncer(limits.connections, self.clock.monotonic)
        guests = Guests(limits.guests, limits.all_guests, bouncer.strike)
        object.__setattr__(self, "bouncer", bouncer)
        object.__setattr__(self, "guests", guests)
        object.__setattr__(self, "parties", Buckets(self.limits.party))
        object.__setattr__(self, "donors", Buckets(self.limits.donor))

    def check_call(self, context: Context) -> None:
        """Refuse a call without a deadline.

        Raises:
            NovaMeshError: BAD_REQUEST.
        """
        left_s = context.time_remaining()
        if left_s is None or left_s > DEADLINE_S_MAX + DEADLINE_SLACK_S:
            raise NovaMeshError(
                Code.BAD_REQUEST,
                "a call needs a deadline of at most ten minutes",
                "set a timeout on the call",
            )

    def open_query(self, sealed: Message, cls: type[T]) -> Verified[T]:
        """A query, verified and counted against its party. Raises what the verifier refuses."""
        query = self.verifier.open_query(self._envelope(sealed), cls, self.clock.now_ms())
        self.parties.take(query.issuer, self.clock.monotonic())
        return query

    def open_repeatable(self, sealed: Message, cls: type[T]) -> Verified[T]:
        """The same for what may be sent twice without harm."""
        query = self.verifier.open(self._envelope(sealed), cls, self.clock.now_ms())
        self.parties.take(query.issuer, self.clock.monotonic())
        return query

    def open_order(self, sealed: Message, cls: type[T]) -> Verified[T]:
        """An order of the pool's owner."""
        return self.verifier.open_order(self._envelope(sealed), cls, self.clock.now_ms())

    @staticmethod
    def _envelope(sealed: Message) -> Envelope:
        return wire.from_pb(Envelope, sealed)


class Pen:
    """Writes to one call, one message at a time, and never cuts one off half way.

    gRPC can neither end a call nor begin another write while one is under way, and a write that is
    cancelled stays under way. So a write that takes too long is given up on, but goes on; `settle`
    waits for it, which ends at the latest with the connection's age.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._flight: asyncio.Task[None] | None = None

    async def write(self, message: object, seconds: float) -> None:
        """Write a message of ours.

        Raises:
            TimeoutError: the other side does not read; call `settle` before anything else.
        """
        await self.settle()
        write = self._context.write(wire.to_pb(message))
        # A task of its own, in no group: a group would cancel it.
        self._flight = asyncio.create_task(_finish(write), name="grpc-write")
        # Whoever waits may be cancelled because the call is over, and then nobody asks how it went.
        self._flight.add_done_callback(_look_at)
        async with asyncio.timeout(seconds):
            await asyncio.shield(self._flight)
        self._flight = None

    async def settle(self) -> None:
        """Wait until no write is under way."""
        if self._flight is not None:
            await asyncio.wait([self._flight])
            self._flight = None


async def _finish(write: Awaitable[None]) -> None:
    await write


def _look_at(flight: asyncio.Task[None]) -> None:
    if not flight.cancelled():
        flight.exception()


async def refuse(context: Context, error: NovaMeshError) -> None:
    """End a call with our error; does not return, unless the caller is gone already.

    Raises:
        asyncio.CancelledError: the caller hung up meanwhile, which is no news for the log.
    """
    if context.done():
        return
    told = server_terms.refusal(error)
    try:
        await context.abort(getattr(grpc.StatusCode, told.status), told.text, told.trailer)
    except grpc.aio.InternalError:
        raise asyncio.CancelledError from None


Handler = Callable[[Any, Any, Context], Awaitable[Any]]


def guarded(handler: Handler) -> Handler:
    """A handler of a call with a deadline: our errors become statuses, bugs become INTERNAL."""

    @functools.wraps(handler)
    async def guard(service: Any, request: Any, context: Context) -> Any:
        door: Door = service.door
        began_s = door.clock.monotonic()
        code = "ok"
        try:
            door.check_call(context)
            return await handler(service, request, context)
        except NovaMeshError as error:
            code = error.code
            await refuse(context, error)
        except Exception as error:
            # The boundary of a call: a bug of ours must not show its insides to a stranger.
            if isinstance(error, grpc.aio.AbortError):
                raise
            if isinstance(error, grpc.aio.InternalError):
                code = Code.CANCELLED  # the caller hung up while a write was under way
                raise asyncio.CancelledError from None
            code = Code.INTERNAL
            _log.exception("a call failed", call=handler.__name__)
            await refuse(context, internal_error())
        finally:
            door.metrics.observe_call(handler.__name__, code, door.clock.monotonic() - began_s)
        return None  # the caller is gone

    return guard


def internal_error() -> NovaMeshError:
    """What strangers are told of a bug of ours."""
    return NovaMeshError(
        Code.INTERNAL, "the coordinator failed; its log says why", "tell the pool's owner"
    )
