"""Peers on the local network, found by mDNS.

Rules: what the network says is unproven, so it is a hint: only private addresses are taken, and
only of peers that we know nothing better of; who answers there must still prove its PeerId. Only
machines of the same pool are heard. A network without multicast costs a log line.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import logging
from collections.abc import AsyncIterator, Callable
from typing import Final

import trio
from zeroconf import ServiceBrowser, ServiceInfo, ServiceListener, Zeroconf

from novamesh.mesh.host import parse_address
from novamesh_proto.errors import NovaMeshError
from novamesh_proto.identity import format_node_id, parse_node_id
from novamesh_proto.messages import NodeId

SERVICE: Final = "_novamesh._udp.local."
ADDRESSES_MAX: Final = 8
ASK_MS: Final = 2000
_NETWORK: Final = b"network"  # property names
_ADDRESS: Final = "address"

_log = logging.getLogger(__name__)

Hint = Callable[[NodeId, tuple[str, ...]], None]


@contextlib.asynccontextmanager
async def announced_on_lan(
    node: NodeId, network: str, addresses: tuple[str, ...], hint: Hint
) -> AsyncIterator[None]:
    """Be found on the local network, and tell `hint` whom we find there, from another thread."""
    try:
        zeroconf = await trio.to_thread.run_sync(_open, node, network, addresses, hint)
    except Exception as error:  # mDNS is a comfort: no way of its failing may cost the mesh
        _log.warning("mDNS does not work here: %s", error)
        yield
        return
    try:
        yield
    finally:
        with trio.move_on_after(3, shield=True):
            await trio.to_thread.run_sync(zeroconf.close, abandon_on_cancel=True)


def service_info(node: NodeId, network: str, addresses: tuple[str, ...]) -> ServiceInfo:
    """What we say of ourselves."""
    usable = [address for address in addresses if is_private(address)][:ADDRESSES_MAX]
    properties: dict[str | bytes, str | bytes | None] = {_NETWORK: _tag(network)}
    properties |= {f"{_ADDRESS}{number}": text for number, text in enumerate(usable)}
    name = format_node_id(node)
    return ServiceInfo(
        SERVICE,
        f"{name}.{SERVICE}",
        port=1,  # mDNS wants a port and an IP; what counts are the addresses above
        properties=properties,
        server=f"{name}.local.",
        parsed_addresses=sorted({_ip(address) for address in usable}) or ["127.0.0.1"],
    )


def peer_of_service(info: ServiceInfo, network: str) -> tuple[NodeId, tuple[str, ...]] | None:
    """Who a service is and where; None if it is of another pool or makes no sense."""
    if info.properties.get(_NETWORK) != _tag(network):
        return None
    try:
        node = parse_node_id(info.name.partition(".")[0])
    except NovaMeshError:
        return None
    texts = (info.properties.get(f"{_ADDRESS}{n}".encode()) for n in range(ADDRESSES_MAX))
    addresses = tuple(text.decode("ascii", "replace") for text in texts if text)
    return node, tuple(address for address in addresses if is_private(address))


def is_private(address: str) -> bool:
    """Whether an address lies on this network or this machine."""
    try:
        parsed = parse_address(address)
        text = next(
            parsed.value_for_protocol(p.name)
            for p in parsed.protocols()
            if p.name in ("ip4", "ip6")
        )
        return ipaddress.ip_address(str(text)).is_private
    except (NovaMeshError, ValueError, StopIteration):
        return False


class _Listener(ServiceListener):
    def __init__(self, network: str, hint: Hint) -> None:
        self._network = network
        self._hint = hint

    def add_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        try:
            info = zc.get_service_info(type_, name, timeout=ASK_MS)
        except Exception as error:  # boundary of zeroconf's thread, which closes while it asks
            _log.debug("mDNS told of %s and no more: %s", name, error)
            return
        found = None if info is None else peer_of_service(info, self._network)
        if found is not None:
            self._hint(*found)

    def update_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        self.add_service(zc, type_, name)

    def remove_service(self, zc: Zeroconf, type_: str, name: str) -> None:
        """Whoever goes is noticed when it does not answer."""


def _open(node: NodeId, network: str, addresses: tuple[str, ...], hint: Hint) -> Zeroconf:
    zeroconf = Zeroconf()
    try:
        if any(map(is_private, addresses)):  # who only dials has nothing to announce
            zeroconf.register_service(service_info(node, network, addresses))
        ServiceBrowser(zeroconf, SERVICE, _Listener(network, hint))
    except BaseException:  # whatever ends it, its sockets are closed
        zeroconf.close()
        raise
    return zeroconf


def _ip(address: str) -> str:
    """The IP of a multiaddr, "" if it has none."""
    parsed = parse_address(address)
    families = [p.name for p in parsed.protocols() if p.name in ("ip4", "ip6")]
    return str(parsed.value_for_protocol(families[0])) if families else ""


def _tag(network: str) -> bytes:
    """A pool's mark, that those of the same pool know; its name is not shouted into the room."""
    return hashlib.sha256(b"novamesh/v1/lan\0" + network.encode()).hexdigest()[:16].encode()
