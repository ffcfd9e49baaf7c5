"""Reach peers that nobody can dial: a circuit through a public peer, then a punched hole.

Rules: a relay passes sealed streams on and is bounded in circuits, bytes and time; a node keeps a
reservation at up to two relays among its peers and says so in its addresses; who dials such an
address still proves that the right peer answers. Where both sides' routers allow it, libp2p makes
a direct connection out of a circuit within half a minute; a new stream then takes it. Circuits and
a pre-shared key do not go together in this library, so a private pool has none.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Final

import trio
from libp2p.abc import IHost
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.config import RelayConfig, RelayRole
from libp2p.relay.circuit_v2.dcutr import DCUtRProtocol
from libp2p.relay.circuit_v2.protocol import PROTOCOL_ID, CircuitV2Protocol
from libp2p.relay.circuit_v2.resources import RelayLimits
from libp2p.relay.circuit_v2.transport import CircuitV2Transport
from libp2p.tools.anyio_service import background_trio_service
from multiaddr import Multiaddr

RELAYS_MAX: Final = 2  # at which one node has a reservation
RENEW_S: Final = 600.0
RETRY_S: Final = 20.0
ASK_S: Final = 15.0
LIMITS: Final = RelayLimits(
    duration=3600,  # seconds of one circuit
    data=1 << 30,  # bytes of one circuit
    max_circuit_conns=64,
    max_reservations=128,
)
_CIRCUIT: Final = "/p2p-circuit"

_log = logging.getLogger(__name__)


def is_circuit(address: str) -> bool:
    """Whether an address leads through a relay."""
    return _CIRCUIT in address


class Circuits:
    """One host's part: a relay for others, or a peer that uses relays."""

    def __init__(self, host: IHost, *, relay: bool) -> None:
        self._host = host
        self._relay = relay
        roles = RelayRole.STOP | RelayRole.CLIENT
        self._protocol = CircuitV2Protocol(host, limits=LIMITS, allow_hop=relay)
        config = RelayConfig(roles=roles | RelayRole.HOP if relay else roles, limits=LIMITS)
        self._transport = CircuitV2Transport(host, self._protocol, config)
        self._punch = DCUtRProtocol(host)
        self._until_s: dict[ID, float] = {}  # relays that know us, and until when we leave it so

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Take part until the block is left."""
        async with (
            background_trio_service(self._protocol),
            background_trio_service(self._punch),
        ):
            await self._protocol.event_started.wait()
            await self._punch.event_started.wait()
            yield

    async def dial(self, address: str) -> None:
        """Connect through a relay; raises whatever goes wrong."""
        await self._transport.dial(Multiaddr(address))

    async def reserve(self) -> None:
        """Be known at relays among our peers; one that is full or gone is tried again later."""
        now_s = trio.current_time()
        present = set(self._host.get_connected_peers())
        self._until_s = {r: s for r, s in self._until_s.items() if r in present and s > now_s}
        for peer in present - set(self._until_s):
            if self._relay or len(self._until_s) >= RELAYS_MAX:
                return
            if self._is_relay(peer):
                self._until_s[peer] = now_s + (RENEW_S if await self._ask(peer) else RETRY_S)

    def addresses(self) -> tuple[str, ...]:
        """Where we can be reached through those relays, without our own PeerId at the end."""
        found: list[str] = []
        for relay in self._until_s:
            if relay not in self._transport._reservations:
                continue
            with contextlib.suppress(Exception):  # a relay whose address was forgotten meanwhile
                for address in self._host.get_peerstore().addrs(relay):
                    text = str(address)
                    if not is_circuit(text):
                        whole = text if "/p2p/" in text else f"{text}/p2p/{relay}"
                        found.append(whole + _CIRCUIT)
        return tuple(dict.fromkeys(found))

    def _is_relay(self, peer: ID) -> bool:
        try:
            return PROTOCOL_ID in self._host.get_peerstore().get_protocols(peer)
        except Exception:  # it has not told yet what it speaks
            return False

    async def _ask(self, relay: ID) -> bool:
        try:
            with trio.fail_after(ASK_S):
                stream = await self._host.new_stream(relay, [PROTOCOL_ID])
                try:
                    return bool(await self._transport._make_reservation(stream, relay))
                finally:
                    await stream.close()
        except Exception as error:  # it is gone or full: later again
            _log.debug("no reservation at %s: %s", relay, type(error).__name__)
            return False
