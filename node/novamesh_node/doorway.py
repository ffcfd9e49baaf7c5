"""What every call to this node passes before anybody looks at what it says.

Order: a deadline → a share of the calls → the rate of jobs, and whether any are taken → its message
in time → bytes that are such a message. Rules: anybody may knock, so nobody holds a call for ever:
gRPC would wait for a message without end, and answer bytes that are none with a traceback in our
log. A place has its share, whatever others do, and so has its crowd: a peer of the mesh has a place
of its own, and many peers behind one address no more than a few. A call with one message is taken
as a stream of one, which looks the same on the wire, because only of a stream can be read with a
deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import grpc
import grpc.aio

from novamesh_proto.buckets import Buckets, Rate
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.guests import Guests
from novamesh_proto.limits import JOB_TIMEOUT_MS_MAX
from novamesh_proto.places import crowd_of, place_of
from novamesh_proto.server_terms import refusal, strict

HEAR_S: Final = 3.0
HEAR_JOB_S: Final = 20.0  # 900 KiB of a prompt take 15 s on half a megabit a second
CALL_S_MAX: Final = 90.0  # the deadline of a call with one answer: clients wait a minute at most
WATCH_S_MAX: Final = JOB_TIMEOUT_MS_MAX / 1000 + 30  # a job's time, and a little for the way
CALLS_MAX: Final = 256
EACH_MAX: Final = 64  # of one place
CROWD_MAX: Final = 128  # of one crowd: half of them
JOB_RATE: Final = Rate(8, 32)  # jobs that one place hands in
CROWD_RATE: Final = Rate(32, 128)  # and one crowd
_JOB: Final = "Submit"

Context = grpc.aio.ServicerContext[Any, Any]
Answer = Callable[[Any, Context], Awaitable[Any]]


class Doorway:
    """A gRPC server to add the service to; this puts itself in front of each of its methods."""

    def __init__(self, server: grpc.aio.Server, check_jobs: Callable[[], None]) -> None:
        """`check_jobs` raises POLICY where no jobs are taken."""
        self._server = server
        self._check_jobs = check_jobs
        self._jobs = Buckets(JOB_RATE)
        self._crowds_jobs = Buckets(CROWD_RATE)
        self._held = Guests(EACH_MAX, CALLS_MAX)
        self._crowds_held = Guests(CROWD_MAX, 2 * CALLS_MAX)  # more calls gRPC does not begin

    def __len__(self) -> int:
        return len(self._held)

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """Nothing: what is given here is given again by the name of its service."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Add the methods of a service."""
        fronted = {name: self._front(name, one) for name, one in handlers.items()}
        self._server.add_registered_method_handlers(service, fronted)

    def _front(self, name: str, handler: Any) -> Any:
        parse, write = strict(handler.request_deserializer), handler.response_serializer
        if handler.response_streaming:
            call = self._single(name, handler.unary_stream, WATCH_S_MAX)
            return grpc.stream_stream_rpc_method_handler(call, parse, write)
        call = self._single(name, handler.unary_unary, CALL_S_MAX)
        return grpc.stream_unary_rpc_method_handler(call, parse, write)

    def _single(self, name: str, answer: Answer, deadline_s: float) -> Answer:
        async def call(_: object, context: Context) -> Any:
            place = place_of(context.peer())
            crowd = crowd_of(place)
            try:
                _check_deadline(context, deadline_s)
                with self._held.hold(place), self._crowds_held.hold(crowd):
                    if name == _JOB:
                        self._check_jobs()
                        now_s = asyncio.get_running_loop().time()
                        self._jobs.take(place, now_s)
                        self._crowds_jobs.take(crowd, now_s)
                    request = await _hear(context, HEAR_JOB_S if name == _JOB else HEAR_S)
                    return await answer(request, context)
            except NovaMeshError as error:
                await refuse(context, error)
                return None

        return call


async def refuse(context: Context, error: NovaMeshError) -> None:
    """End a call with our error; does not return, unless the caller is gone already."""
    if context.done():
        return
    told = refusal(error)
    with contextlib.suppress(grpc.aio.InternalError):
        await context.abort(getattr(grpc.StatusCode, told.status), told.text, told.trailer)


def _check_deadline(context: Context, most_s: float) -> None:
    left_s = context.time_remaining()
    if left_s is None or left_s > most_s:
        raise NovaMeshError(
            Code.BAD_REQUEST,
            f"a call like this needs a deadline of at most {most_s:g} s",
            "set a timeout on the call",
        )


async def _hear(context: Context, seconds: float) -> Any:
    """The one message of a call. Raises EXPIRED, BAD_REQUEST."""
    try:
        async with asyncio.timeout(seconds):
            message = await context.read()
    except TimeoutError:
        raise NovaMeshError(
            Code.EXPIRED, f"no message came within {seconds:g} s", "call again"
        ) from None
    if message is grpc.aio.EOF:
        raise NovaMeshError(Code.BAD_REQUEST, "this call has no message")
    return message
