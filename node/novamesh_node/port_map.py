"""Ask the router at home to pass a public TCP port on to this machine: NAT-PMP, else UPnP.

Opt-in, for owners who want clients to dial their node. Rules: whatever the router does or does not
do, the node goes on, and a failure is one log line; a mapping is leased, renewed at half its time
and given back at the end, so that a node that dies leaves none for long; what a router says of its
address is a claim, for the coordinator to probe. Nothing is asked of anybody but the router.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import ipaddress
import socket
import struct
import sys
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import structlog

from novamesh.net_check import is_inside
from novamesh_proto.errors import Code, NovaMeshError

T = TypeVar("T")
LEASE_S: Final = 1_200
RETRY_S: Final = 60.0  # after a renewal that failed
CLOSE_S: Final = 2.0
PORTS_TRIED: Final = 4  # ours, then those above it, where others have mapped them
NAT_PMP_PORT: Final = 5351
_WAITS_S: Final = (0.25, 0.5, 1.0)  # for an answer by UDP, which may be lost; RFC 6886 waits longer
_MAP_TCP: Final = 2
_REFUSALS: Final = {
    1: "it speaks another version", 2: "it is told not to", 3: "it has no address itself",
    4: "it has no room", 5: "it does not know how",
}  # fmt: skip
_SEARCH_MS: Final = 2_000
UPNP_S: Final = 20.0  # for all that one request to a router may take
_HINT: Final = "switch UPnP or NAT-PMP on in the router, or forward the port by hand"
_ROUTES: Final = Path("/proc/net/route")

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class HomeRouter:
    """A router that maps ports, and its address outside."""

    protocol: str
    public_address: str


@dataclass(frozen=True, slots=True)
class Mapping:
    """A port that is open outside for `lease_s`; 0 is for ever."""

    public_address: str
    public_port: int
    lease_s: int

    @property
    def endpoint(self) -> str:
        """host:port, as clients dial it."""
        return f"{self.public_address}:{self.public_port}"


class Way(Protocol):
    """A protocol that routers speak."""

    @property
    def name(self) -> str:
        """What it is called."""
        ...

    async def look(self) -> HomeRouter:
        """The router, asked for nothing but its address. Raises NovaMeshError."""
        ...

    async def open(self, port: int, public_port: int, lease_s: int) -> Mapping:
        """Map a port, or renew it; another public one may be given. Raises NovaMeshError."""
        ...

    async def close(self, port: int, public_port: int) -> None:
        """Give it back. Raises NovaMeshError."""
        ...


async def find_home_routers(ways: Sequence[Way] | None = None) -> list[HomeRouter]:
    """The routers here that map ports; empty if none does.

    Raises:
        NovaMeshError: UNSUPPORTED if none answers, and UPnP could not be tried.
    """
    looks = [way.look() for way in (_usual() if ways is None else ways)]
    results = await asyncio.gather(*looks, return_exceptions=True)
    found = [each for each in results if isinstance(each, HomeRouter)]
    for each in results:
        if isinstance(each, NovaMeshError):
            if not found and each.code is Code.UNSUPPORTED:
                raise each
        elif isinstance(each, BaseException):
            raise each
    return found


@contextlib.asynccontextmanager
async def mapped(
    port: int,
    moved: Callable[[str | None], None] = lambda endpoint: None,
    ways: Sequence[Way] | None = None,
) -> AsyncIterator[str | None]:
    """While inside, strangers reach our TCP port at the endpoint that is given, or None.

    Args:
        port: Where we listen.
        moved: Told the new endpoint when the router gives another one, None when it gives no more.
        ways: Instead of NAT-PMP and UPnP with the router of the default route.
    """
    opened = await _open(port, _usual() if ways is None else ways)
    if opened is None:
        yield None
        return
    way, mapping = opened
    _log.info("port mapped", way=way.name, endpoint=mapping.endpoint, lease_s=mapping.lease_s)
    upkeep = asyncio.create_task(_keep(way, port, mapping, moved), name="port-map")
    try:
        yield mapping.endpoint
    finally:
        upkeep.cancel()
        await asyncio.gather(upkeep, return_exceptions=True)
        with contextlib.suppress(NovaMeshError, TimeoutError):  # its lease ends soon anyway
            async with asyncio.timeout(CLOSE_S):
                await way.close(port, mapping.public_port)


async def _open(port: int, ways: Sequence[Way]) -> tuple[Way, Mapping] | None:
    """The first way that works, after one line of log where none does."""
    troubles = []
    for way in ways:
        try:
            mapping = await way.open(port, port, LEASE_S)
        except NovaMeshError as error:
            troubles.append(f"{way.name}: {error.message}")
            continue
        if not is_inside(mapping.public_address):
            return way, mapping
        troubles.append(
            f"{way.name}: the router is behind another NAT, at {mapping.public_address}"
        )
        with contextlib.suppress(NovaMeshError):  # its lease ends soon anyway
            await way.close(port, mapping.public_port)
    _log.warning("no port mapped", port=port, error="; ".join(troubles), hint=_HINT)
    return None


async def _keep(way: Way, port: int, mapping: Mapping, moved: Callable[[str | None], None]) -> None:
    """Renew at half the lease; one line of log when that begins to fail."""
    endpoint: str | None = mapping.endpoint
    pause_s = (mapping.lease_s or LEASE_S) / 2
    while True:
        await asyncio.sleep(pause_s)
        try:
            renewed = await way.open(port, mapping.public_port, LEASE_S)
        except NovaMeshError as error:
            pause_s = min(RETRY_S, pause_s)
            if endpoint is not None:
                _log.warning("port mapping lost", way=way.name, error=error.message)
                endpoint = None
                moved(None)
            continue
        pause_s = (renewed.lease_s or LEASE_S) / 2
        if renewed.endpoint != endpoint:
            _log.info("port mapped", way=way.name, endpoint=renewed.endpoint)
            endpoint = renewed.endpoint
            moved(endpoint)


def _usual() -> tuple[Way, ...]:
    """NAT-PMP is one packet and no parser, so it is tried first."""
    return (NatPmp(), Upnp())


class NatPmp:
    """RFC 6886, with the router of the default route unless told another."""

    name = "NAT-PMP"

    def __init__(self, router: tuple[str, int] | None = None) -> None:
        self._router = router

    async def look(self) -> HomeRouter:
        """Ask for the address outside."""
        answer = await self._ask(struct.pack("!BB", 0, 0), 12)
        return HomeRouter(self.name, str(ipaddress.IPv4Address(answer[8:12])))

    async def open(self, port: int, public_port: int, lease_s: int) -> Mapping:
        """One request for the port, one for the address."""
        request = struct.pack("!BBHHHI", 0, _MAP_TCP, 0, port, public_port, lease_s)
        answer = await self._ask(request, 16)
        given_port, given_s = struct.unpack("!HI", answer[10:16])
        return Mapping((await self.look()).public_address, given_port, given_s)

    async def close(self, port: int, public_port: int) -> None:
        """A lease of no time."""
        await self._ask(struct.pack("!BBHHHI", 0, _MAP_TCP, 0, port, 0, 0), 16)

    async def _ask(self, request: bytes, length: int) -> bytes:
        router = self._router or _default_router()
        loop = asyncio.get_running_loop()
        try:
            # Connected, so that only the router's answers arrive.
            transport, inbox = await loop.create_datagram_endpoint(_Inbox, remote_addr=router)
        except OSError as error:
            raise _unavailable(f"cannot ask {router[0]}: {error.strerror}") from error
        try:
            for wait_s in _WAITS_S:
                transport.sendto(request)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        return await inbox.take(request[1] | 0x80, length)
        finally:
            transport.close()
        raise _unavailable(f"the router {router[0]} does not answer")


class _Inbox(asyncio.DatagramProtocol):
    """Answers of one router, the newest few."""

    def __init__(self) -> None:
        self._came: asyncio.Queue[bytes] = asyncio.Queue(4)

    def datagram_received(self, data: bytes, addr: Any) -> None:
        """Keep it if there is room."""
        with contextlib.suppress(asyncio.QueueFull):
            self._came.put_nowait(data)

    def error_received(self, exc: Exception) -> None:
        """Nobody listens there: no answer will come, which the deadline says."""

    async def take(self, operation: int, length: int) -> bytes:
        """The next answer to that operation. Raises UNAVAILABLE with a refusal's reason."""
        while True:
            data = await self._came.get()
            if len(data) < 8 or data[1] != operation:
                continue
            (result,) = struct.unpack("!H", data[2:4])
            if result:
                why = _REFUSALS.get(result, f"result {result}")
                raise _unavailable(f"the router does not map ports: {why}")
            if len(data) >= length:
                return data


def _default_router() -> tuple[str, int]:
    """The router of the default route.

    Raises:
        NovaMeshError: UNAVAILABLE if there is none, or the system does not say.
    """
    if sys.platform == "linux" and _ROUTES.exists():
        for line in _ROUTES.read_text().splitlines()[1:]:
            fields = line.split()
            if len(fields) > 3 and int(fields[1], 16) == 0 and int(fields[3], 16) & 2:
                packed = struct.pack("=I", int(fields[2], 16))
                return socket.inet_ntoa(packed), NAT_PMP_PORT
    raise _unavailable("this system names no router")


class Upnp:
    """The internet gateway device that answers on the local network, by miniupnpc.

    Args:
        interface: Address of the interface to search on; the default route's if empty.
        search_ms: How long to wait for answers.
    """

    name = "UPnP"

    def __init__(self, interface: str = "", search_ms: int = _SEARCH_MS) -> None:
        self._interface = interface
        self._search_ms = search_ms

    async def look(self) -> HomeRouter:
        """Search, and ask for the address outside."""
        return await self._in_thread(self._look)

    async def open(self, port: int, public_port: int, lease_s: int) -> Mapping:
        """Search, map; a port that somebody else has is passed over."""
        return await self._in_thread(self._open, port, public_port, lease_s)

    async def close(self, port: int, public_port: int) -> None:
        """Search, take the mapping away."""
        await self._in_thread(self._close, public_port)

    async def _in_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        """A call of the library, which blocks; nobody waits for it longer than UPNP_S.

        A thread of its own, because the process would not end before one of asyncio's does.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()

        def tell(settle: Callable[[Any], None], outcome: Any) -> None:
            if not answer.done():
                settle(outcome)

        def call() -> None:
            settle: Callable[[Any], None] = answer.set_result
            outcome: Any
            try:
                outcome = self._guarded(work, *arguments)
            except NovaMeshError as error:
                settle, outcome = answer.set_exception, error
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits
                loop.call_soon_threadsafe(tell, settle, outcome)

        threading.Thread(target=call, name="upnp", daemon=True).start()
        try:
            return await asyncio.wait_for(answer, UPNP_S)
        except TimeoutError:
            raise _unavailable("the router does not answer") from None

    def _guarded(self, work: Callable[..., T], *arguments: Any) -> T:
        try:
            # Brought by the extra, and wanted only by those who ask for it.
            library: Any = importlib.import_module("miniupnpc")
        except ImportError:
            raise NovaMeshError(
                Code.UNSUPPORTED, "miniupnpc is not installed", "pip install 'novamesh[upnp]'"
            ) from None
        try:
            options = {"multicastif": self._interface} if self._interface else {}
            device = library.UPnP(discoverdelay=self._search_ms, **options)
            if not device.discover():
                raise _unavailable("no router answers")
            device.selectigd()
            return work(device, *arguments)
        except NovaMeshError:
            raise
        except Exception as error:  # the library raises bare Exceptions, in the router's words
            raise _unavailable(f"the router refused: {str(error)[:200]}") from error

    def _look(self, device: Any) -> HomeRouter:
        return HomeRouter(self.name, str(device.externalipaddress()))

    def _open(self, device: Any, port: int, public_port: int, lease_s: int) -> Mapping:
        trouble: Exception | None = None
        for candidate in range(public_port, min(public_port + PORTS_TRIED, 65536)):
            for seconds in (lease_s, 0):  # some routers know only mappings for ever
                order = (candidate, "TCP", device.lanaddr, port, "novamesh", "", seconds)
                try:
                    device.addportmapping(*order)
                    return Mapping(str(device.externalipaddress()), candidate, seconds)
                except Exception as error:  # bare, see above: it says which of many reasons
                    trouble = error
                    if "OnlyPermanentLeases" not in str(error):
                        break
            if "Conflict" not in str(trouble):
                break
        raise _unavailable(f"the router refused: {str(trouble)[:200]}")

    def _close(self, device: Any, public_port: int) -> None:
        device.deleteportmapping(public_port, "TCP")


def _unavailable(message: str) -> NovaMeshError:
    return NovaMeshError(Code.UNAVAILABLE, message, _HINT)
