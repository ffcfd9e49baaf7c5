"""What every call passes before anybody looks at what it says; laid in front of the services.

Order: a slot among the guests → the place it comes from may not ask too often → its message within
HEAR_S → bytes that are such a message. Rules: gRPC would wait for a message for ever, and answer
bytes that are none with a traceback in our log; here both are refusals. A call with one message is
taken as a stream of one, which looks the same on the wire, because only of a stream can be read
with a deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import Any, Final

import grpc
import grpc.aio

from novamesh_coordinator.service import Context, Door, refuse
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.places import place_of
from novamesh_proto.server_terms import strict

HEAR_S: Final = 20.0  # 900 KiB of a prompt take 15 s on half a megabit a second
PENANCE_S: Final = 2.0  # before a refusal of an address that asks too often
HEALTH: Final = "grpc.health.v1.Health"  # anybody may ask, and follow it for ever

Answer = Callable[[Any, Context], Any]


class Doorstep:
    """A gRPC server to add services to; it puts this in front of each of their methods."""

    def __init__(self, server: grpc.aio.Server, door: Door) -> None:
        self._server = server
        self._door = door

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """Nothing: what is given here is given again by the name of its service."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Add the methods of a service."""
        fronted = {name: self._front(service, name, one) for name, one in handlers.items()}
        self._server.add_registered_method_handlers(service, fronted)

    def _front(self, service: str, name: str, handler: Any) -> Any:
        parse, write = strict(handler.request_deserializer), handler.response_serializer
        if handler.request_streaming:
            call = self._stream(name, handler.stream_stream)
            return grpc.stream_stream_rpc_method_handler(call, parse, write)
        if handler.response_streaming:
            call = self._single(name, handler.unary_stream, keep_slot=service == HEALTH)
            return grpc.stream_stream_rpc_method_handler(call, parse, write)
        call = self._single(name, handler.unary_unary)
        return grpc.stream_unary_rpc_method_handler(call, parse, write)

    def _single(self, name: str, answer: Answer, keep_slot: bool = False) -> Answer:
        """A method whose caller says one thing; with `keep_slot` it stays a guest to the end."""

        async def call(_: object, context: Context) -> Any:
            with contextlib.ExitStack() as slot:
                try:
                    place = place_of(context.peer())
                    slot.enter_context(self._door.guests.hold(place))
                    await self._admit(place)
                    request = await _hear(context)
                except NovaMeshError as error:
                    await self._refuse(name, context, error)
                    return None
                if not keep_slot:
                    slot.close()
                return await answer(request, context)

        return call

    def _stream(self, name: str, answer: Answer) -> Answer:
        """A method that reads for itself."""

        async def call(messages: object, context: Context) -> None:
            place = place_of(context.peer())
            try:
                with self._door.guests.hold(place):
                    await self._admit(place)
            except NovaMeshError as error:
                await self._refuse(name, context, error)
                return
            await answer(messages, context)

        return call

    async def _admit(self, place: str) -> None:
        """Raises BUSY, after a while, if too many calls come from there.

        A connection has room for few calls at once: while one waits here, no other takes its place.
        """
        try:
            self._door.addresses.take(place, self._door.clock.monotonic())
        except NovaMeshError:
            self._door.bouncer.strike(place)
            await asyncio.sleep(PENANCE_S)
            raise

    async def _refuse(self, name: str, context: Context, error: NovaMeshError) -> None:
        self._door.metrics.observe_call(name, error.code, 0.0)
        await refuse(context, error)


async def _hear(context: Context) -> Any:
    """The one message of a call. Raises EXPIRED, BAD_REQUEST."""
    try:
        async with asyncio.timeout(HEAR_S):
            message = await context.read()
    except TimeoutError:
        raise NovaMeshError(
            Code.EXPIRED, f"no message came within {HEAR_S:g} s", "call again"
        ) from None
    if message is grpc.aio.EOF:
        raise NovaMeshError(Code.BAD_REQUEST, "this call has no message")
    return message
