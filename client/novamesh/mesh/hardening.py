"""What libp2p needs before strangers may talk to it, and the proof that it is in force.

Rules: each measure has one test and one line in `assert_hardened`, which every start goes through;
a version of libp2p that was not examined is refused, since the measures lean on its inside. This
module opens nothing and knows nothing of descriptors.
"""

from __future__ import annotations

import importlib.metadata
import logging
from typing import Final

import trio
from google.protobuf.message import DecodeError
from libp2p.abc import IHost, INetConn, INetStream, INetwork, INotifee
from libp2p.exceptions import ParseError
from libp2p.io.abc import ReadWriteCloser
from libp2p.io.exceptions import IncompleteReadError
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.stream.exceptions import StreamError
from libp2p.network.swarm import Swarm, SwarmEvent
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from multiaddr import Multiaddr

from novamesh.mesh.installed import EXAMINED
from novamesh_proto.errors import Code, NovaMeshError

INBOUND_MAX: Final = 256  # connections that others opened; as many again are refused, not queued
TOPIC_RATE: Final = 200.0  # messages a second that one neighbour may forward
RPC_BYTES_MAX: Final = 64 * 1024
BANNED_MAX: Final = 4096
STOP_S: Final = 3.0
_CLOSE_S: Final = 1.0
_NEEDED: Final = (
    "_do_handle_inbound_connection",
    "_inbound_limiter",
    "_build_remote_multiaddr",
    "upgrade_inbound_raw_conn",
    "connection_gate",
)

_log = logging.getLogger(__name__)


class SafePubsub(Pubsub):
    """Pubsub in which what a peer sends can end that peer's stream and nothing else."""

    async def continuously_read_stream(self, stream: INetStream) -> None:
        """Read until the stream ends; a frame that cannot be read ends it, for good."""
        peer = stream.muxed_conn.peer_id
        try:
            await super().continuously_read_stream(stream)
        except DecodeError:
            _log.debug("unreadable frame from %s", peer)
            if len(self.blacklisted_peers) >= BANNED_MAX:
                self.blacklisted_peers.pop()
            self.blacklisted_peers.add(peer)
            await self._drop(stream, peer)
        except (StreamError, ParseError, IncompleteReadError):
            raise  # the stream's own end, which the caller knows
        except Exception as error:  # one stream is the boundary: it ends, the node lives
            _log.debug("unusable frame from %s: %s", peer, type(error).__name__)
            await self._drop(stream, peer)

    async def push_msg(self, msg_forwarder: ID, msg: rpc_pb2.Message) -> None:
        """Validate, deliver and forward one message; whatever goes wrong ends with the message."""
        try:
            await super().push_msg(msg_forwarder, msg)
        except Exception as error:  # one message is the boundary: it is dropped, the node lives
            _log.debug("message from %s dropped: %s", msg_forwarder, type(error).__name__)

    async def _drop(self, stream: INetStream, peer: ID) -> None:
        with trio.move_on_after(_CLOSE_S):
            try:
                await stream.reset()
            except Exception as error:  # it was gone already, which is what we want
                _log.debug("reset of %s: %s", peer, type(error).__name__)
        self._handle_dead_peer(peer)


def free_inbound_slots(swarm: Swarm) -> None:
    """Tie each inbound slot to the life of its connection.

    Raises:
        NovaMeshError: UNSUPPORTED if the swarm is not made as this expects.
    """
    missing = [name for name in _NEEDED if not hasattr(swarm, name)]
    if missing:
        raise _unfit(f"its swarm has no {missing[0]}")
    swarm._inbound_limiter = trio.CapacityLimiter(INBOUND_MAX)

    async def handle(
        closer: ReadWriteCloser, listener: Multiaddr, failure_event: SwarmEvent
    ) -> None:
        raw = RawConnection(closer, False)
        try:
            remote = swarm._build_remote_multiaddr(closer)
            if remote is not None and not await swarm.connection_gate.is_allowed(remote):
                return
            muxed = await swarm.upgrade_inbound_raw_conn(raw, listener)
            for connection in swarm.get_connections(muxed.peer_id):
                if getattr(connection, "muxed_conn", None) is muxed:
                    await connection.event_closed.wait()
        except Exception as error:  # one connection is the boundary: the listener goes on
            _log.debug("inbound connection ended: %s", type(error).__name__)
        finally:
            with trio.move_on_after(_CLOSE_S, shield=True):
                await raw.close()

    handle.__name__ = "novamesh_inbound"
    swarm._do_handle_inbound_connection = handle


def stop_dialling_by_itself(swarm: Swarm) -> None:
    """Let nobody but our own upkeep choose who is dialled.

    Raises:
        NovaMeshError: UNSUPPORTED if the swarm is not made as this expects.
    """
    if not hasattr(swarm.auto_connector, "maybe_connect"):
        raise _unfit("its swarm has no auto_connector.maybe_connect")
    swarm.auto_connector.maybe_connect = _stay


async def _stay() -> None:
    """Dial nobody."""


class SocketCloser(INotifee):
    """Close the socket of a connection as soon as the other side ends it."""

    async def disconnected(self, network: INetwork, conn: INetConn) -> None:
        """Close what is below the muxer; closing twice does nothing."""
        secured = getattr(conn.muxed_conn, "secured_conn", None)
        if secured is not None:
            with trio.move_on_after(_CLOSE_S, shield=True):
                try:
                    await secured.close()
                except Exception as error:  # it is closed or it is broken: either way it is gone
                    _log.debug("closing a socket: %s", type(error).__name__)

    async def connected(self, network: INetwork, conn: INetConn) -> None:
        """Nothing to do."""

    async def opened_stream(self, network: INetwork, stream: INetStream) -> None:
        """Nothing to do."""

    async def closed_stream(self, network: INetwork, stream: INetStream) -> None:
        """Nothing to do."""

    async def listen(self, network: INetwork, multiaddr: Multiaddr) -> None:
        """Nothing to do."""

    async def listen_close(self, network: INetwork, multiaddr: Multiaddr) -> None:
        """Nothing to do."""


async def stop(host: IHost) -> None:
    """Say goodbye to every peer and close what listens."""
    with trio.move_on_after(STOP_S, shield=True):
        async with trio.open_nursery() as nursery:
            for peer in host.get_connected_peers():
                nursery.start_soon(disconnect, host, peer)
        await host.close()


async def disconnect(host: IHost, peer: ID) -> None:
    """Close all connections to a peer; one that is gone already is no error."""
    try:
        await host.disconnect(peer)
    except Exception as error:  # a peer that is gone must not keep the others
        _log.debug("goodbye to %s: %s", peer, type(error).__name__)


def assert_hardened(host: IHost, pubsub: Pubsub) -> None:
    """Return if every measure is in force.

    Raises:
        NovaMeshError: UNSUPPORTED, with the measure that is not.
    """
    version = importlib.metadata.version("libp2p")
    if version != EXAMINED:
        raise _unfit(f"it is version {version}")
    swarm = host.get_network()
    if not isinstance(swarm, Swarm):
        raise _unfit("its network is no swarm")
    if set(swarm.upgrader.security_multistream.transports) != {NOISE}:
        raise _unfit("it offers other security than Noise")
    if set(swarm.upgrader.muxer_multistream.transports) != {YAMUX}:
        raise _unfit("it offers another muxer than Yamux")
    if getattr(swarm._do_handle_inbound_connection, "__name__", "") != "novamesh_inbound":
        raise _unfit("its inbound slots are not given back")
    if swarm.auto_connector.maybe_connect is not _stay:
        raise _unfit("it would dial peers of its own choice")
    if not isinstance(pubsub, SafePubsub) or pubsub.max_inbound_rpc_size > RPC_BYTES_MAX:
        raise _unfit("its pubsub is not the guarded one")
    router = pubsub.router
    if not isinstance(router, GossipSub) or router.max_messages_per_topic_per_second < TOPIC_RATE:
        raise _unfit("its gossip drops what a pool says")


def _unfit(problem: str) -> NovaMeshError:
    return NovaMeshError(
        Code.UNSUPPORTED,
        f"this libp2p cannot be used safely: {problem}",
        f"pip install 'libp2p=={EXAMINED}'",
    )
