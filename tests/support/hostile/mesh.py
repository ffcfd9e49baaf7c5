"""Hostile frames by the hundred on every protocol of a mesh peer, which must go on.

`python -m support.hostile.mesh --frames 600 --seeds 3` tells what was sent, by protocol. Frames are
random bytes, honest ones that were bent, honest ones cut short, and lengths that lie; they come
over true connections, from attackers who keep the handshake and nothing else, and over bare TCP.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import trio
from libp2p.kad_dht.pb.kademlia_pb2 import Message
from libp2p.pubsub.pb import rpc_pb2
from libp2p.relay.circuit_v2.pb import circuit_pb2
from libp2p.stream_muxer.exceptions import MuxedStreamEOF
from libp2p.utils import encode_varint_prefixed

from novamesh.mesh.host import HostConfig, dial, open_host
from novamesh_proto.identity import PrivateKey
from novamesh_proto.names import TUNNEL_PROTOCOL, gossip_topic
from support.mesh_peers import NETWORK, Companion, Said, encode, mesh_config, trio_until

PROTOCOLS: Final = (
    "/meshsub/1.1.0",
    "/ipfs/kad/1.0.0",
    "/ipfs/id/1.0.0",
    "/ipfs/id/push/1.0.0",
    "/ipfs/ping/1.0.0",
    "/libp2p/circuit/relay/0.2.0/hop",
    "/libp2p/circuit/relay/0.2.0/stop",
    "/libp2p/dcutr",
    TUNNEL_PROTOCOL,
)
BARE: Final = "tcp"  # no handshake at all
FRAMES_A_STREAM: Final = 4
STREAMS_A_NAME: Final = 25  # then another attacker comes
ONCE: Final = frozenset({"/meshsub/1.1.0"})  # one bad frame shuts its sender out
ATTACK_S: Final = 900.0
END_S: Final = 0.5  # until the victim has read what came, or will not


@dataclass
class Campaign:
    """What was sent at one peer, and whether it lives."""

    seed: int
    sent: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    taken: Counter[str] = field(default_factory=Counter)  # streams that the victim took up
    heard_after: bool = False
    took_s: float = 0.0

    async def run(self, folder: Path, frames: int) -> None:
        """So many frames on each protocol, then an honest peer must still be heard."""
        began_s = time.monotonic()
        victim = Companion(mesh_config(folder, serve_socket=folder / "nobody", relay=True))
        async with trio.open_nursery() as nursery:
            await nursery.start(victim.peer.run)
            with trio.fail_after(ATTACK_S):
                async with trio.open_nursery() as attack:
                    for protocol in (*PROTOCOLS, BARE):
                        attack.start_soon(self._attack, victim, protocol, frames)
            honest = Companion(mesh_config(folder, victim.peer.addresses))
            await nursery.start(honest.peer.run)
            honest.say()
            victim.say()
            await trio_until(lambda: victim.knows(honest) and honest.knows(victim))
            self.heard_after = True
            nursery.cancel_scope.cancel()
        self.took_s = time.monotonic() - began_s

    async def _attack(self, victim: Companion, protocol: str, frames: int) -> None:
        rng = random.Random(f"{self.seed} {protocol}")
        while self.sent[protocol] < frames:
            if protocol == BARE:
                await self._knock(victim, rng)
                continue
            async with open_host(HostConfig(PrivateKey.generate(), ())) as attacker:
                try:
                    await dial(attacker, victim.node, victim.peer.addresses)
                    peer = victim.peer._host.get_id()
                    [connection] = attacker.get_network().get_connections(peer)
                    for _ in range(1 if protocol in ONCE else STREAMS_A_NAME):
                        if self.sent[protocol] < frames:
                            await self._shoot(connection.muxed_conn, protocol, rng)
                except Exception as error:  # shut out, which is an answer too
                    self.refused[f"{protocol} {type(error).__name__}"] += 1

    async def _shoot(self, connection: Any, protocol: str, rng: random.Random) -> None:
        """One stream: all its frames at once, then its end, then whatever the victim says."""
        stream = await connection.open_stream()
        frames = [bent(honest_frame(protocol, rng), rng) for _ in range(FRAMES_A_STREAM)]
        came = b""
        try:
            await stream.write(opening(protocol) + b"".join(frames))
            self.sent[protocol] += FRAMES_A_STREAM
            await stream.close()
            with trio.move_on_after(END_S), contextlib.suppress(MuxedStreamEOF):
                while True:
                    came += await stream.read(1 << 16)
        except Exception as error:  # the stream was reset, as it should be
            self.refused[f"{protocol} {type(error).__name__}"] += 1
        finally:
            self.taken[protocol] += came.startswith(opening(protocol))
            with trio.move_on_after(END_S, shield=True):
                await stream.reset()

    async def _knock(self, victim: Companion, rng: random.Random) -> None:
        _, _, host, _, port, *_ = victim.peer.addresses[0].split("/")
        try:
            stream = await trio.open_tcp_stream(host, int(port))
            async with stream:
                self.sent[BARE] += 1
                await stream.send_all(bent(b"\x13/multistream/1.0.0\n\x07/noise\n", rng))
        except OSError as error:
            self.refused[f"{BARE} {type(error).__name__}"] += 1


def opening(protocol: str) -> bytes:
    """What asks for a protocol on a new stream, unasked and in one go."""
    lines = (b"/multistream/1.0.0\n", protocol.encode() + b"\n")
    return b"".join(bytes(encode_varint_prefixed(line)) for line in lines)


def honest_frame(protocol: str, rng: random.Random) -> bytes:
    """What somebody honest might send, length first."""
    makers: dict[str, Callable[[random.Random], bytes]] = {
        "/meshsub/1.1.0": _rpc,
        "/ipfs/kad/1.0.0": _query,
        "/libp2p/circuit/relay/0.2.0/hop": _circuit,
        "/libp2p/circuit/relay/0.2.0/stop": _circuit,
    }
    maker = makers.get(protocol)
    body = rng.randbytes(rng.randrange(1, 400)) if maker is None else maker(rng)
    return bytes(encode_varint_prefixed(body))


def bent(frame: bytes, rng: random.Random) -> bytes:
    """A frame with a fault, or no frame at all."""
    match rng.randrange(6):
        case 0:
            return rng.randbytes(rng.randrange(1, 2000))
        case 1:
            return frame[: rng.randrange(1, len(frame) + 1)]
        case 2:  # a length that promises more than anybody takes
            return b"\xff\xff\xff\xff\x7f" + frame
        case 3:
            return bytes(encode_varint_prefixed(rng.randbytes(rng.randrange(1, 300))))
        case 4:
            return frame + frame[::-1]
    bytes_ = bytearray(frame)
    for _ in range(rng.randrange(1, 6)):
        bytes_[rng.randrange(len(bytes_))] = rng.randrange(256)
    return bytes(bytes_)


def _rpc(rng: random.Random) -> bytes:
    rpc = rpc_pb2.RPC()
    topic = rng.choice([gossip_topic(NETWORK), "elsewhere", ""])
    key = PrivateKey.from_bytes(rng.randbytes(32))
    message = rpc.publish.add(
        data=encode(Said(key.node_id, ("/ip4/127.0.0.1/tcp/1",), rng.randrange(1 << 40))),
        from_id=bytes(key.node_id),
        seqno=rng.randbytes(rng.choice([0, 8, 64])),
        signature=rng.randbytes(64),
        key=rng.randbytes(rng.choice([0, 36])),
    )
    message.topicIDs.append(topic)
    for _ in range(rng.randrange(4)):
        rpc.subscriptions.add(subscribe=rng.random() < 0.7, topicid=topic)
    if rng.random() < 0.7:
        control = rpc.control
        control.graft.add(topicID=topic)
        control.prune.add(topicID=topic, backoff=rng.randrange(1 << 40))
        control.ihave.add(topicID=topic, messageIDs=[rng.randbytes(rng.randrange(40))])
        control.iwant.add(messageIDs=[b"not hex", b""])
    if rng.random() < 0.3:
        rpc.senderRecord = rng.randbytes(rng.randrange(200))
    return bytes(rpc.SerializeToString())


def _query(rng: random.Random) -> bytes:
    message = Message()
    message.type = rng.randrange(6)
    message.key = rng.randbytes(rng.choice([0, 1, 32, 38, 100]))
    for _ in range(rng.randrange(3)):
        provider = message.providerPeers.add(
            id=bytes(PrivateKey.from_bytes(rng.randbytes(32)).node_id)
        )
        provider.addrs.append(rng.randbytes(rng.randrange(20)))
    if rng.random() < 0.5:
        message.record.key = message.key
        message.record.value = rng.randbytes(30)
    if rng.random() < 0.3:
        message.senderRecord = rng.randbytes(rng.randrange(200))
    return bytes(message.SerializeToString())


def _circuit(rng: random.Random) -> bytes:
    """A request to a relay; the same numbers mean something to its other protocol."""
    message = circuit_pb2.HopMessage()
    message.type = rng.randrange(3)
    message.peer.id = bytes(PrivateKey.from_bytes(rng.randbytes(32)).node_id)
    if rng.random() < 0.3:
        message.peer.addrs.append(rng.randbytes(rng.randrange(20)))
    if rng.random() < 0.3:
        message.reservation.voucher = rng.randbytes(rng.randrange(64))
        message.reservation.expire = rng.randrange(1 << 40)
    return bytes(message.SerializeToString())


def main() -> int:
    """The whole campaign."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=600, help="on each protocol")
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    for seed in range(given.seeds):
        campaign = Campaign(seed)
        with tempfile.TemporaryDirectory(prefix="nm") as folder:
            trio.run(campaign.run, Path(folder), given.frames)
        print(f"seed {seed}: {campaign.took_s:.1f} s, heard after: {campaign.heard_after}")
        for protocol, number in campaign.sent.items():
            taken = campaign.taken[protocol]
            print(f"  {protocol.ljust(32)} {number} frames, {taken} streams taken up")
        for what, number in campaign.refused.most_common(12):
            print(f"  refused {what} {number}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
