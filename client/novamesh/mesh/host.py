"""A libp2p host that is fit for strangers: TCP, Noise and Yamux, under the key of this machine.

Rules: one Ed25519 key, so the PeerId is the NodeId; nothing is dialled that nobody asked for; a
peer's addresses are tried one after the other, each within its time. What is said over a
connection is not this module's business.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

import psutil
import trio
from libp2p import new_host
from libp2p.abc import IHost
from libp2p.crypto.ed25519 import Ed25519PrivateKey
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.x25519 import create_new_key_pair as new_noise_keys
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.network.connection import swarm_connection
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.stream_muxer.yamux.yamux import Yamux
from multiaddr import Multiaddr

from novamesh.mesh import hardening
from novamesh.mesh.relay import Circuits, is_circuit
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.identity import PrivateKey, format_node_id, public_key_bytes, short
from novamesh_proto.messages import NodeId

PSK_BYTES: Final = 32
ADDRESSES_MAX: Final = 8  # of one peer; more are not tried
DIAL_S: Final = 5.0  # for one address
NEAR_S: Final = 1.0  # for one that is somebody's private one, where a relay is known too
CIRCUIT_S: Final = 10.0  # for one through a relay
_CONNECTIONS_MAX: Final = 2 * hardening.INBOUND_MAX
_ADDRESS_LIFE_S: Final = 120
# Libraries that tell every disconnect as an error; what matters is told by this package.
_NOISY: Final = ("libp2p", "multiaddr", "trio_websocket")


@dataclass(frozen=True, slots=True)
class HostConfig:
    """What a host is made of; `listen` and its peers' addresses are multiaddrs."""

    key: PrivateKey
    listen: tuple[str, ...]
    psk: bytes | None = None
    connections_per_peer: int = 1


@contextlib.asynccontextmanager
async def open_host(config: HostConfig) -> AsyncIterator[IHost]:
    """A running host; at the end every connection and every listener is closed.

    Raises:
        NovaMeshError: BAD_CONFIG for an address that cannot be listened on or a bad key.
    """
    _quieten()
    listen = [parse_address(text) for text in config.listen]
    for address in listen:
        _claim_port(address)
    host = _make(config)
    swarm = host.get_network()
    assert isinstance(swarm, Swarm)
    swarm.retry_config = RetryConfig(max_retries=0)  # whoever dials decides when to try again
    hardening.free_inbound_slots(swarm)
    hardening.stop_dialling_by_itself(swarm)
    swarm.register_notifee(hardening.SocketCloser())
    async with host.run(listen_addrs=[]):
        try:
            for address in listen:
                if not await swarm.listen(address):
                    raise NovaMeshError(
                        Code.BAD_CONFIG,
                        f"cannot listen on {address}",
                        "is the address one of this machine's, and its port free?",
                    )
            yield host
        finally:
            await hardening.stop(host)


async def dial(
    host: IHost,
    node: NodeId,
    addresses: Sequence[str],
    circuits: Circuits | None = None,
) -> str:
    """Connect to a peer unless we are; the address that worked, "" if one was there.

    Addresses through a relay come last, and only where there are `circuits`.

    Raises:
        NovaMeshError: UNAVAILABLE if none of its addresses answers as that peer.
    """
    peer = peer_of(node)
    if host.get_network().get_connections(peer):
        return ""
    swarm = host.get_network()
    assert isinstance(swarm, Swarm)
    store = host.get_peerstore()
    relayed = circuits is not None and any(map(is_circuit, addresses[:ADDRESSES_MAX]))
    for text in sorted(addresses[:ADDRESSES_MAX], key=is_circuit):
        with contextlib.suppress(Exception):  # whatever one address does, the next has its turn
            address = parse_address(text)
            if is_circuit(text):
                if circuits is not None:
                    with trio.fail_after(CIRCUIT_S):
                        await circuits.dial(with_peer(text, node))
                    return text
                continue
            store.add_addrs(peer, [address], _ADDRESS_LIFE_S)
            with trio.fail_after(NEAR_S if relayed and _is_private(address) else DIAL_S):
                await swarm.dial_addr(address, peer)
            return text
    raise NovaMeshError(
        Code.UNAVAILABLE,
        f"{short(node)} answers at none of {len(addresses[:ADDRESSES_MAX])} addresses",
        "is it on, and reachable from here?",
    )


def _is_private(address: Multiaddr) -> bool:
    """Whether it is an IP address that other networks have too, and lead elsewhere."""
    names = {protocol.name for protocol in address.protocols()}
    family = next((name for name in ("ip4", "ip6") if name in names), None)
    if family is None:
        return False
    return ip_address(str(address.value_for_protocol(family))).is_private


def with_peer(address: str, node: NodeId) -> str:
    """The address with its peer at the end, which a descriptor may leave out."""
    suffix = f"/p2p/{format_node_id(node)}"
    return address if address.endswith(suffix) else address + suffix


def announced(host: IHost) -> tuple[str, ...]:
    """The addresses at which others may dial this host, each with its PeerId."""
    return tuple(dict.fromkeys(str(address) for address in host.get_addrs()))


def parse_address(text: str) -> Multiaddr:
    """A multiaddr of TCP.

    Raises:
        NovaMeshError: BAD_CONFIG if this is none.
    """
    try:
        address = Multiaddr(text)
        names = [protocol.name for protocol in address.protocols()]
    except Exception as error:  # the library's own kinds are many, and all mean the same
        raise _no_address(text) from error
    if "tcp" not in names or {"ws", "wss", "tls", "quic", "quic-v1"} & set(names):
        raise _no_address(text)
    return address


def peer_in(text: str) -> tuple[NodeId, str]:
    """Who and where of a whole address, as a bootstrap list has them: "…/p2p/12D3KooW…".

    Raises:
        NovaMeshError: BAD_CONFIG if it names nobody.
    """
    address = parse_address(text)
    named = address.get_peer_id()
    node = None if named is None else node_of(ID.from_string(named))
    if node is None:
        raise NovaMeshError(
            Code.BAD_CONFIG, f"{text!r} names no peer", "end it with /p2p/ and the peer's id"
        )
    return node, text


def peer_of(node: NodeId) -> ID:
    """The PeerId of a NodeId: the same bytes."""
    return ID(bytes(node))


def node_of(peer: ID) -> NodeId | None:
    """The NodeId of a PeerId; None if its key is none that we take."""
    node = NodeId(peer.to_bytes())
    try:
        public_key_bytes(node)
    except NovaMeshError:
        return None
    return node


def _quieten() -> None:
    """Keep the libraries' talk out of our logs, and out of a root logger that nobody set up."""
    for name in _NOISY:
        logging.getLogger(name).addHandler(logging.NullHandler())
        logging.getLogger(name).propagate = False
    swarm_connection.logging = logging.getLogger(swarm_connection.__name__)


def _make(config: HostConfig) -> IHost:
    if config.psk is not None and len(config.psk) != PSK_BYTES:
        raise NovaMeshError(
            Code.BAD_CONFIG,
            f"a pre-shared key has {PSK_BYTES} bytes, this has {len(config.psk)}",
            "make one:  openssl rand -hex 32",
        )
    private = Ed25519PrivateKey.from_bytes(config.key.to_bytes())
    keys = KeyPair(private, private.get_public_key())
    host = new_host(
        key_pair=keys,
        sec_opt={NOISE: NoiseTransport(keys, noise_privkey=new_noise_keys().private_key)},
        muxer_opt={YAMUX: Yamux},
        connection_config=ConnectionConfig(
            max_connections=_CONNECTIONS_MAX,
            high_watermark=_CONNECTIONS_MAX,
            low_watermark=0,
            min_connections=0,
            max_connections_per_peer=config.connections_per_peer,
        ),
        psk=None if config.psk is None else config.psk.hex(),
        addrs_factory=_spell_out,
    )
    assert host.get_id().to_bytes() == config.key.node_id
    return host


def _spell_out(addresses: list[Multiaddr]) -> list[Multiaddr]:
    """An address for each interface where one says "all of them", which nobody could dial."""
    spelt: list[Multiaddr] = []
    for address in addresses:
        text = str(address)
        for wildcard, family in (("/ip4/0.0.0.0/", "ip4"), ("/ip6/::/", "ip6")):
            if text.startswith(wildcard):
                rest = text.removeprefix(wildcard)
                spelt += [Multiaddr(f"/{family}/{ip}/{rest}") for ip in _interfaces(family)]
                break
        else:
            spelt.append(address)
    return spelt


def _interfaces(family: str) -> list[str]:
    kind = socket.AF_INET if family == "ip4" else socket.AF_INET6
    found = [
        entry.address
        for entries in psutil.net_if_addrs().values()
        for entry in entries
        if entry.family == kind and "%" not in entry.address  # a scope means nothing elsewhere
    ]
    outside = [ip for ip in found if not ip.startswith("127.") and ip != "::1"]
    return outside or found


def _claim_port(address: Multiaddr) -> None:
    """Refuse a port that somebody else has; libp2p would share it and lose half the calls."""
    port = int(address.value_for_protocol("tcp") or 0)
    if port == 0:
        return
    family, name = (socket.AF_INET6, "ip6") if "ip6" in str(address) else (socket.AF_INET, "ip4")
    with socket.socket(family) as claim:
        claim.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            claim.bind((address.value_for_protocol(name), port))
        except (OSError, LookupError) as error:
            raise NovaMeshError(
                Code.BAD_CONFIG, f"cannot listen on {address}: {error}", "choose another port"
            ) from error


def _no_address(text: str) -> NovaMeshError:
    return NovaMeshError(
        Code.BAD_CONFIG, f"{text!r} is no TCP multiaddr", "write it as /ip4/192.0.2.7/tcp/7710"
    )
