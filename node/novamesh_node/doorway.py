"""What every call to this node passes before anybody looks at what it says.

Order: a deadline → a share of the calls → the rate of jobs, and whether any are taken → its message
in time → bytes that are such a message. Rules: anybody may knock, so nobody holds a call for ever:
gRPC would wait for a message without end, and answer bytes that are none with a traceback in our
log. A call with one message is taken as a stream of one, which looks the same on the wire, because
only of a stream can be read with a deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, Final

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from novamesh_node.connections import place_of
from novamesh_proto import wire
from novamesh_proto.buckets import Buckets, Rate
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.limits import JOB_TIMEOUT_MS_MAX
from novamesh_proto.messages import ErrorDetail
from novamesh_proto.names import ERROR_METADATA

HEAR_S: Final = 3.0
HEAR_JOB_S: Final = 20.0  # 900 KiB of a prompt take 15 s on half a megabit a second
CALL_S_MAX: Final = 90.0  # the deadline of a call with one answer: clients wait a minute at most
WATCH_S_MAX: Final = JOB_TIMEOUT_MS_MAX / 1000 + 30  # a job's time, and a little for the way
CALLS_MAX: Final = 256
EACH_MAX: Final = 64  # of one place
FEW: Final = 4  # that a place gets when all others are taken
JOB_RATE: Final = Rate(8, 32)  # jobs that one place hands in
RETRY_MS: Final = 1_000
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
        self._held: Counter[str] = Counter()

    def __len__(self) -> int:
        return self._held.total()

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """Nothing: what is given here is given again by the name of its service."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Add the methods of a service."""
        fronted = {name: self._front(name, one) for name, one in handlers.items()}
        self._server.add_registered_method_handlers(service, fronted)

    def _front(self, name: str, handler: Any) -> Any:
        parse, write = _strict(handler.request_deserializer), handler.response_serializer
        if handler.response_streaming:
            call = self._single(name, handler.unary_stream, WATCH_S_MAX)
            return grpc.stream_stream_rpc_method_handler(call, parse, write)
        call = self._single(name, handler.unary_unary, CALL_S_MAX)
        return grpc.stream_unary_rpc_method_handler(call, parse, write)

    def _single(self, name: str, answer: Answer, deadline_s: float) -> Answer:
        async def call(_: object, context: Context) -> Any:
            place = place_of(context.peer())
            try:
                _check_deadline(context, deadline_s)
                with self._hold(place):
                    if name == _JOB:
                        self._check_jobs()
                        self._jobs.take(place, asyncio.get_running_loop().time())
                    request = await _hear(context, HEAR_JOB_S if name == _JOB else HEAR_S)
                    return await answer(request, context)
            except NovaMeshError as error:
                await refuse(context, error)
                return None

        return call

    @contextlib.contextmanager
    def _hold(self, place: str) -> Iterator[None]:
        """Keep one of the place's calls while inside. Raises BUSY."""
        held = self._held[place]
        if held >= EACH_MAX or (len(self) >= CALLS_MAX and held >= FEW):
            raise NovaMeshError(
                Code.BUSY, "too many calls at the same time", "end those under way", RETRY_MS
            )
        self._held[place] += 1
        try:
            yield
        finally:
            self._held[place] -= 1
            if not self._held[place]:
                del self._held[place]


async def refuse(context: Context, error: NovaMeshError) -> None:
    """End a call with our error; does not return, unless the caller is gone already."""
    if context.done():
        return
    detail = ErrorDetail(
        error.code, error.message[:500], error.hint[:250], max(0, error.retry_after_ms)
    )
    status, told = getattr(grpc.StatusCode, error.meaning.grpc), wire.encode(detail)
    with contextlib.suppress(grpc.aio.InternalError):
        await context.abort(status, error.message[:500], ((ERROR_METADATA, told),))


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


def _strict(parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Refuses bytes that are no message, in our words."""

    def read(data: bytes) -> Any:
        try:
            return parse(data)
        except DecodeError:
            raise NovaMeshError(
                Code.BAD_REQUEST, "these bytes are not the message that this method takes"
            ) from None

    return read
