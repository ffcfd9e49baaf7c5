"""gRPC without sockets: what the generated stubs and servicers need, over the simulated network.

Every message is serialized by its sender and parsed by its receiver. What grpc.aio does at the
edges is done alike: a status with trailing metadata, a deadline, a handler that is cancelled when
its caller is gone, and UNAVAILABLE where nobody answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

import grpc
import grpc.aio

from support.sim.loop import HERE
from support.sim.network import Network
from support.sim.process import Process, check_alive
from support.sim.stream import GONE, LATE, OK, Status, Stream
from support.sim.witness import Witness

RESET_SHARE = 0.5  # of lost messages: the connection is reset at once; else nobody ever knows


class Server:
    """One listening process: methods by name, as the generated `add_…_to_server` registers them."""

    def __init__(self, process: Process, witness: Witness | None = None) -> None:
        self.process = process
        self.witness = witness
        self.methods: dict[str, Any] = {}

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """Not needed: the same methods are registered by name."""

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        """Take the methods of a service."""
        self.methods |= {f"/{service}/{name}": handler for name, handler in handlers.items()}


@dataclass
class Context:
    """What a handler is given."""

    caller: str
    deadline_s: float | None
    stream: Stream | None = None
    handler: Any = None
    witness: Witness | None = None
    status: Status | None = None
    ended: bool = False

    def peer(self) -> str:
        """Address of the caller."""
        return f"sim:{self.caller}:1"

    def time_remaining(self) -> float | None:
        """Seconds until the deadline."""
        if self.deadline_s is None:
            return None
        return max(0.0, self.deadline_s - asyncio.get_running_loop().time())

    def done(self) -> bool:
        """Whether the call is over."""
        return self.ended or (self.stream is not None and self.stream.down.snapped)

    async def read(self) -> Any:
        """The caller's next message, or EOF."""
        assert self.stream is not None
        item = await self.stream.up.next()
        if item is GONE:
            await asyncio.get_running_loop().create_future()  # cancelled with the stream
        return item if item is grpc.aio.EOF else self.parse(item)

    def parse(self, data: bytes) -> Any:
        """What the caller said."""
        message = self.handler.request_deserializer(data)
        if self.witness is not None:
            self.witness.hear(self.caller, data, message)
        return message

    def serialize(self, message: Any) -> bytes:
        """What the caller is told."""
        data: bytes = self.handler.response_serializer(message)
        if self.witness is not None:
            self.witness.tell(self.caller, data, message)
        return data

    async def write(self, message: Any) -> None:
        """Answer."""
        check_alive()
        assert self.stream is not None
        await asyncio.sleep(0)
        self.stream.down.send(self.serialize(message))
        self.stream.maybe_snap()

    async def abort(
        self, code: Any, details: str = "", trailing: tuple[tuple[str, bytes], ...] = ()
    ) -> NoReturn:
        """End the call with a status."""
        self.status = Status(code, details, trailing)
        raise grpc.aio.AbortError


async def _status_of(work: Any, context: Context) -> tuple[Any, Status]:
    """Run a handler; its reply and the status it ended with."""
    try:
        reply = await work
    except grpc.aio.AbortError:
        return None, context.status or OK
    finally:
        context.ended = True
    return reply, OK


@dataclass
class Hosts:
    """Who listens: a server by address, None while it is down; nothing comes from deserted ones."""

    network: Network
    servers: dict[str, Server | None] = field(default_factory=dict)
    deserted: set[str] = field(default_factory=set)

    def move(self, name: str, before: str, after: str) -> None:
        """A party, and what listens there, has another address."""
        server = self.servers.pop(before, None)
        self.deserted = {*self.deserted, before} - {after}
        self.servers[after] = server
        self.network.move(name)


class Channel:
    """A connection of the running process to an address."""

    def __init__(self, hosts: Hosts, address: str) -> None:
        self._hosts = hosts
        self._address = address
        self._server = hosts.servers.get(address)
        self._streams: list[Call] = []

    def unary_unary(self, method: str, **codec: Any) -> Callable[..., Any]:
        """A method with one request and one reply."""

        async def call(request: Any, timeout: float) -> Any:  # noqa: ASYNC109  gRPC's own
            return await self._call(method, codec["request_serializer"](request), codec, timeout)

        return call

    def unary_stream(self, method: str, **codec: Any) -> Callable[..., Call]:
        """A method with one request and many replies."""

        def call(request: Any, timeout: float) -> Call:
            made = self._open(method, codec, timeout)
            made.send(codec["request_serializer"](request))
            return made

        return call

    def stream_stream(self, method: str, **codec: Any) -> Callable[..., Call]:
        """A method with many of both."""
        return lambda: self._open(method, codec, None)

    async def close(self, grace: float | None = None) -> None:
        """Cancel what is under way."""
        del grace
        for call in self._streams:
            call.cancel()

    def _open(self, method: str, codec: dict[str, Any], timeout: float | None) -> Call:
        made = Call(self._hosts, self._target(), method, codec, timeout)
        if self._address in self._hosts.deserted:
            made.stray()
        self._streams = [call for call in self._streams if not call.over] + [made]
        return made

    def _target(self) -> Server | None:
        """The server that was dialled; a restarted one has another certificate."""
        server = self._hosts.servers.get(self._address)
        return server if server is self._server else None

    async def _call(self, method: str, data: bytes, codec: dict[str, Any], limit_s: float) -> Any:
        check_alive()
        try:
            async with asyncio.timeout(limit_s):
                reply, status = await self._carry(method, data, limit_s)
        except TimeoutError:
            raise LATE.error() from None
        if status is not OK:
            raise status.error()
        return codec["response_deserializer"](reply)

    async def _carry(self, method: str, data: bytes, limit_s: float) -> tuple[Any, Status]:
        network, caller = self._hosts.network, HERE.get()
        await asyncio.sleep(network.delay())
        server = self._target()
        if server is None and self._address in self._hosts.deserted:
            return await self._lose(f"request {caller.name} → {self._address} {method}", told=False)
        if server is None:
            return None, GONE
        there = server.process.name
        moves = network.moves.get(caller.name), network.moves.get(there)
        if not network.reaches(caller.name, there) or network.chance(network.weather.lost):
            return await self._lose(f"request {caller.name} → {there} {method}")
        work = self._start(server, caller, method, data, limit_s)
        if network.chance(network.weather.twice):
            network.note(f"twice {caller.name} → {there} {method}")
            again = self._later(server, caller, method, data, limit_s)
            server.process.spawn(again, f"{method} again")
        try:
            reply, status = await asyncio.shield(work)
        except asyncio.CancelledError:
            if not work.done():
                work.cancel()
            if asyncio.current_task().cancelling():  # type: ignore[union-attr]
                raise
            return None, GONE  # the server was killed
        await asyncio.sleep(network.delay())
        if moves != (network.moves.get(caller.name), network.moves.get(there)):
            return await self._lose(f"reply {there} → {caller.name} {method}", told=False)
        if not network.reaches(there, caller.name) or network.chance(network.weather.lost):
            return await self._lose(f"reply {there} → {caller.name} {method}")
        return reply, status

    async def _lose(self, what: str, *, told: bool = True) -> tuple[None, Status]:
        self._hosts.network.note(f"lost {what}")
        if not told or not self._hosts.network.chance(RESET_SHARE):
            await asyncio.get_running_loop().create_future()  # until the deadline
        return None, GONE

    async def _later(
        self, server: Server, caller: Process, method: str, data: bytes, limit_s: float
    ) -> None:
        rng = self._hosts.network.rng
        await asyncio.sleep(rng.uniform(0, rng.choice((5, 5, 90))))  # or after its life
        await self._start(server, caller, method, data, limit_s)

    def _start(
        self, server: Server, caller: Process, method: str, data: bytes, limit_s: float
    ) -> asyncio.Task[Any]:
        handler = server.methods[method]
        deadline_s = server.process.monotonic() + limit_s
        context = Context(caller.name, deadline_s, None, handler, server.witness)

        async def work() -> tuple[Any, Status]:
            request = context.parse(data)
            reply, status = await _status_of(handler.unary_unary(request, context), context)
            return context.serialize(reply) if status is OK else None, status

        return server.process.spawn(work(), method)


class Call:
    """The caller's end of a stream."""

    def __init__(
        self,
        hosts: Hosts,
        server: Server | None,
        method: str,
        codec: dict[str, Any],
        timeout: float | None,
    ) -> None:
        self._hosts = hosts
        self._codec = codec
        self._status: Status | None = None if server is not None else GONE
        self._stream: Stream | None = None
        if server is None:
            return
        handler, caller, network = server.methods[method], HERE.get(), hosts.network
        ends = (caller.name, server.process.name)
        self._stream = stream = Stream(network, ends)
        deadline_s = None if timeout is None else network.loop.time() + timeout
        context = Context(caller.name, deadline_s, stream, handler, server.witness)
        stream.task = server.process.spawn(self._serve(handler, context, stream), method)

    def stray(self) -> None:
        """Nobody is there any more to refuse it."""
        network = self._hosts.network
        self._status, self._stream = None, Stream(network, (HERE.get().name, ""))
        network.lose(self._stream)

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self._status is not None

    def send(self, data: Any) -> None:
        """Put a message on the way up."""
        if self._stream is not None:
            self._stream.up.send(data)

    async def read(self) -> Any:
        """The next message; EOF after an OK, the error after any other status."""
        if self._status is None:
            check_alive()
            assert self._stream is not None
            item = await self._stream.down.next()
            check_alive()
            if not isinstance(item, Status):
                return self._codec["response_deserializer"](item)
            self._status = item
            self._stream.close()
        if self._status is OK:
            return grpc.aio.EOF
        raise self._status.error()

    async def __aiter__(self) -> AsyncIterator[Any]:
        while (message := await self.read()) is not grpc.aio.EOF:
            yield message

    async def write(self, message: Any) -> None:
        """Say something."""
        check_alive()
        await asyncio.sleep(0)
        if self._stream is None or self._stream.up.snapped:
            raise (self._status or GONE).error()
        self.send(self._codec["request_serializer"](message))
        self._stream.maybe_snap()

    async def done_writing(self) -> None:
        """Say that nothing more comes."""
        self.send(grpc.aio.EOF)

    def cancel(self) -> None:
        """Hang up."""
        if self._stream is not None and self._status is None:
            self._status = GONE
            self._stream.snap()

    async def code(self) -> Any:
        """The status it ended with."""
        return (self._status or GONE).code

    async def details(self) -> str:
        """In words."""
        return (self._status or GONE).details

    async def initial_metadata(self) -> Any:
        """Nothing."""
        return grpc.aio.Metadata()

    async def trailing_metadata(self) -> Any:
        """Where our errors travel."""
        return grpc.aio.Metadata(*(self._status or GONE).trailing)

    @staticmethod
    async def _serve(handler: Any, context: Context, stream: Stream) -> None:
        if handler.request_streaming:
            work = handler.stream_stream(None, context)
        else:
            data = await stream.up.next()
            if data is GONE:
                return
            work = handler.unary_stream(context.parse(data), context)
        _, status = await _status_of(work, context)
        stream.down.send(status)
