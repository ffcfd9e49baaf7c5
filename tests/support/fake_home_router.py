"""A router that maps ports, on loopback: NAT-PMP by UDP, UPnP by SSDP and SOAP.

Both speak as routers do; what goes wrong is set by the test. `mapped` is what they pass on now.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

LOOPBACK = "127.0.0.1"
SSDP = ("239.255.255.250", 1900)
_DEVICE = "urn:schemas-upnp-org:device"
_SERVICE = "urn:schemas-upnp-org:service"
_PAGE = f"""<?xml version="1.0"?>
<root xmlns="urn:schemas-upnp-org:device-1-0">
<specVersion><major>1</major><minor>0</minor></specVersion>
<device><deviceType>{_DEVICE}:InternetGatewayDevice:1</deviceType><deviceList>
<device><deviceType>{_DEVICE}:WANDevice:1</deviceType>
<serviceList><service><serviceType>{_SERVICE}:WANCommonInterfaceConfig:1</serviceType>
<controlURL>/common</controlURL><eventSubURL>/e</eventSubURL><SCPDURL>/s</SCPDURL>
</service></serviceList><deviceList>
<device><deviceType>{_DEVICE}:WANConnectionDevice:1</deviceType>
<serviceList><service><serviceType>{_SERVICE}:WANIPConnection:1</serviceType>
<controlURL>/wan</controlURL><eventSubURL>/e</eventSubURL><SCPDURL>/s</SCPDURL>
</service></serviceList></device></deviceList></device></deviceList></device></root>"""


@dataclass
class FakeHomeRouter:
    """What both protocols share."""

    public_address: str = "198.51.100.11"
    mapped: dict[int, tuple[int, int]] = field(default_factory=dict)  # public: (ours, lease)
    requests: list[str] = field(default_factory=list)
    refusal: int = 0  # a NAT-PMP result, a UPnP error code
    taken: set[int] = field(default_factory=set)  # public ports that somebody else has
    lost: int = 0  # packets to drop first
    lease_max: int = 7_200  # what NAT-PMP gives at most; UPnP gives nothing but 0 if this is 0


class NatPmpServer(asyncio.DatagramProtocol):
    """RFC 6886, the router's side."""

    def __init__(self, router: FakeHomeRouter) -> None:
        self._router = router

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        router, operation = self._router, data[1]
        if router.lost:
            router.lost -= 1
            return
        router.requests.append(f"nat-pmp {operation}")
        head = struct.pack("!BBHI", 0, operation | 0x80, router.refusal, 1)
        if router.refusal:
            body = bytes(4) if operation == 0 else bytes(8)
        elif operation == 0:
            body = socket.inet_aton(router.public_address)
        else:
            _, port, public, lease = struct.unpack("!HHHI", data[2:12])
            body = self._map(port, public, lease)
        self._transport.sendto(head + body, addr)

    def _map(self, port: int, public: int, lease: int) -> bytes:
        router = self._router
        if not lease:
            for known, (ours, _) in list(router.mapped.items()):
                if ours == port:
                    del router.mapped[known]
            return struct.pack("!HHI", port, 0, 0)
        while public in router.taken:
            public += 1
        lease = min(lease, router.lease_max)
        router.mapped[public] = (port, lease)
        return struct.pack("!HHI", port, public, lease)


@contextlib.asynccontextmanager
async def nat_pmp(router: FakeHomeRouter) -> AsyncIterator[tuple[str, int]]:
    """Serve NAT-PMP while inside; where."""
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(
        lambda: NatPmpServer(router), local_addr=(LOOPBACK, 0)
    )
    try:
        yield transport.get_extra_info("sockname")
    finally:
        transport.close()


class _Announcer(asyncio.DatagramProtocol):
    """Answers searches for routers."""

    def __init__(self, page: str) -> None:
        self._page = page

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        if b"InternetGatewayDevice:1" in data:
            answer = (
                f"HTTP/1.1 200 OK\r\nST: {_DEVICE}:InternetGatewayDevice:1\r\n"
                f"USN: uuid:fake::{_DEVICE}:InternetGatewayDevice:1\r\n"
                f"LOCATION: {self._page}\r\n\r\n"
            )
            self._transport.sendto(answer.encode(), addr)


@contextlib.asynccontextmanager
async def upnp(router: FakeHomeRouter) -> AsyncIterator[None]:
    """Serve UPnP on the loopback interface while inside."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = re.search(r"content-length: *(\d+)", head, re.IGNORECASE)
        body = (await reader.readexactly(int(length[1]))).decode() if length else ""
        status, page = _soap(router, head, body) if head.startswith("POST") else (200, _PAGE)
        said = f"HTTP/1.1 {status} X\r\nContent-Length: {len(page)}\r\nConnection: close\r\n\r\n"
        writer.write((said + page).encode())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, LOOPBACK, 0)
    port = server.sockets[0].getsockname()[1]
    searches = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    searches.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    searches.bind(SSDP)
    group = socket.inet_aton(SSDP[0]) + socket.inet_aton(LOOPBACK)
    searches.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(
        lambda: _Announcer(f"http://{LOOPBACK}:{port}/root.xml"), sock=searches
    )
    try:
        yield
    finally:
        transport.close()
        server.close()
        await server.wait_closed()


def _soap(router: FakeHomeRouter, head: str, body: str) -> tuple[int, str]:
    """Status and page of one action."""
    found = re.search(r"soapaction: *\"?[^#\"]+#(\w+)", head, re.IGNORECASE)
    action = found[1] if found else ""
    router.requests.append(f"upnp {action}")
    said = dict(re.findall(r"<New(\w+)>([^<]*)</New", body))
    answer: dict[str, str] = {}
    if action == "GetStatusInfo":
        answer = {"ConnectionStatus": "Connected", "LastConnectionError": "ERROR_NONE"}
    elif action == "GetExternalIPAddress":
        answer = {"ExternalIPAddress": router.public_address}
    elif action == "AddPortMapping":
        public, lease = int(said["ExternalPort"]), int(said["LeaseDuration"])
        if router.refusal:
            return _fault(router.refusal)
        if public in router.taken:
            return _fault(718)
        if lease and not router.lease_max:
            return _fault(725)
        router.mapped[public] = (int(said["InternalPort"]), lease)
    elif action == "DeletePortMapping":
        router.mapped.pop(int(said["ExternalPort"]), None)
    fields = "".join(f"<New{name}>{value}</New{name}>" for name, value in answer.items())
    reply = (
        f'<u:{action}Response xmlns:u="{_SERVICE}:WANIPConnection:1">{fields}</u:{action}Response>'
    )
    return 200, _envelope(reply)


def _fault(code: int) -> tuple[int, str]:
    detail = f"<UPnPError><errorCode>{code}</errorCode><errorDescription>no</errorDescription>"
    return 500, _envelope(f"<s:Fault><detail>{detail}</UPnPError></detail></s:Fault>")


def _envelope(content: str) -> str:
    schema = "http://schemas.xmlsoap.org/soap/envelope/"
    return (
        f'<?xml version="1.0"?><s:Envelope xmlns:s="{schema}"><s:Body>{content}</s:Body>'
        "</s:Envelope>"
    )
