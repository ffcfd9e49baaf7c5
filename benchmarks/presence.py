"""What idle nodes cost a coordinator that finds them by MQTT: memory and processor time.

    PYTHONPATH=tests python benchmarks/presence.py [--nodes 10000] [--seconds 120] [--json]

A real coordinator, a real Mosquitto; the nodes are connections of a few processes of their own.
Each is a member, has a key, a last will and a really signed descriptor, and renews it as a node
does.
Exit status 1 where the coordinator needs more than 2 GB or one core.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from load.nodes import dial, now_ms
from load.process import Coordinator, serving

from novamesh_node.descriptor import RENEW_MS
from novamesh_proto import envelope, wire
from novamesh_proto.identity import PrivateKey, format_node_id
from novamesh_proto.limits import DESCRIPTOR_LIFE_MS
from novamesh_proto.names import GONE, HERE, TOPIC_DESCRIPTOR, TOPIC_PRESENCE, node_topic
from support.actors import NodeActor
from support.memory_channel import Caller
from support.mosquitto import Mosquitto
from support.parties import COORDINATOR, NETWORK, descriptor, party

PROCESSES: Final = 2
JOINS_AT_ONCE: Final = 32
READY_S: Final = 600.0
RENEW_S: Final = RENEW_MS / 1000
RSS_MB_MAX: Final = 2000.0
CORES_MAX: Final = 1.0
LATE_S: Final = 5.0
KEEPALIVE_S: Final = 60  # renewals are more frequent, so nobody pings
LIMITS: Final = "max_connections -1\nmax_queued_messages 20000\nmax_inflight_messages 100\n"


def name_of(number: int) -> str:
    """The party behind a node."""
    return f"idle {number}"


class Line(asyncio.Protocol):
    """One node's connection: MQTT 5, as much of it as a node that only publishes needs."""

    def __init__(self, key: PrivateKey) -> None:
        self._key = key
        self._sequence = 0
        node = format_node_id(key.node_id)
        self._here = node_topic(NETWORK, node, TOPIC_PRESENCE)
        self._shown = node_topic(NETWORK, node, TOPIC_DESCRIPTOR)
        self._node = node
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say who we are, and leave a will."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        flags = 0x04 | 0x08  # a will, QoS 1
        session, will = b"\x05\x11" + (60).to_bytes(4, "big"), b"\x05\x18" + (10).to_bytes(4, "big")
        head = _text("MQTT") + bytes([5, flags]) + KEEPALIVE_S.to_bytes(2, "big") + session
        body = _text(self._node) + will + _text(self._here) + _bytes(GONE)
        transport.write(_packet(0x10, head + body))
        transport.write(_publish(self._here, HERE, b"\0"))
        self.renew()

    def connection_lost(self, error: Exception | None) -> None:
        """Nobody expects that here."""
        self._transport = None

    def renew(self) -> None:
        """Publish a newly signed descriptor."""
        if self._transport is None:
            return
        self._sequence += 1
        header = envelope.header(self._key, NETWORK, (), now_ms(), DESCRIPTOR_LIFE_MS)
        said = descriptor(self._key, header=header, sequence=self._sequence)
        life = b"\x05\x02" + (DESCRIPTOR_LIFE_MS // 1000).to_bytes(4, "big")
        self._transport.write(
            _publish(self._shown, wire.encode(envelope.seal(said, self._key)), life, retain=True)
        )

    @property
    def open(self) -> bool:
        """Whether the broker keeps it."""
        return self._transport is not None


def _publish(topic: str, payload: bytes, properties: bytes, retain: bool = False) -> bytes:
    return _packet(0x32 | retain, _text(topic) + b"\x00\x01" + properties + payload)


def _packet(kind: int, body: bytes) -> bytes:
    length, left = bytearray(), len(body)
    while left > 127:
        length.append(left & 127 | 128)
        left >>= 7
    return bytes([kind]) + bytes([*length, left]) + body


def _text(text: str) -> bytes:
    return _bytes(text.encode())


def _bytes(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data


async def stay(port: int, first: int, count: int) -> None:
    """Be `count` nodes, each renewed every RENEW_S, evenly spread."""
    loop = asyncio.get_running_loop()
    lines = []
    for number in range(first, first + count):
        key = party(name_of(number))
        line: Line
        _, line = await loop.create_connection(lambda key=key: Line(key), "127.0.0.1", port)
        lines.append(line)
    begun_s = time.monotonic()
    turn = 0
    while True:
        due_s = begun_s + turn * RENEW_S / len(lines)
        await asyncio.sleep(max(0.0, due_s - time.monotonic()))
        if time.monotonic() - due_s > LATE_S:
            raise SystemExit("this machine is too slow to be so many nodes")
        lines[turn % len(lines)].renew()
        turn += 1
        if turn % len(lines) == 0 and not all(line.open for line in lines):
            raise SystemExit(f"{sum(not line.open for line in lines)} connections broke")


async def join(address: str, nodes: int) -> None:
    """Make all of them members."""
    channel = await dial(address)
    try:
        caller, numbers = Caller(channel.channel), iter(range(nodes))

        async def some() -> None:
            for number in numbers:
                actor = NodeActor(name_of(number), COORDINATOR.node_id)
                await caller.join(actor.claim(now_ms()))

        await asyncio.gather(*(some() for _ in range(JOINS_AT_ONCE)))
    finally:
        await channel.close()


@contextlib.contextmanager
def staying(port: int, nodes: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """The nodes' processes."""
    share = -(-nodes // PROCESSES)
    ranges = [(first, min(share, nodes - first)) for first in range(0, nodes, share)]
    started = [
        subprocess.Popen([sys.executable, __file__, "--be", str(port), str(first), str(count)])
        for first, count in ranges
    ]
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


def wait_for(coordinator: Coordinator, nodes: int, crowd: list[subprocess.Popen[bytes]]) -> float:
    """Until the coordinator knows them all; seconds that took."""
    begun_s = time.monotonic()
    while (known := coordinator.gauge("novamesh_broker_nodes")) < nodes:
        if time.monotonic() - begun_s > READY_S or any(each.poll() is not None for each in crowd):
            raise SystemExit(f"{known:.0f} of {nodes} nodes are known")
        time.sleep(1.0)
    return time.monotonic() - begun_s


def measure(nodes: int, seconds: float) -> dict[str, float]:
    """Run it all once."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with (
        tempfile.TemporaryDirectory(prefix="presence-") as folder,
        Mosquitto(Path(folder), extra=LIMITS) as mosquitto,
        serving("--mqtt", str(mosquitto.broker())) as coordinator,
    ):
        asyncio.run(join(coordinator.address, nodes))
        with staying(mosquitto.port, nodes) as crowd:
            ready_s = wait_for(coordinator, nodes, crowd)
            before, begun_s = coordinator.usage(), time.monotonic()
            time.sleep(seconds)
            after, took_s = coordinator.usage(), time.monotonic() - begun_s
            if any(each.poll() is not None for each in crowd):
                raise SystemExit("some nodes are gone")
            return {
                "nodes": nodes,
                "known_at_the_end": coordinator.gauge("novamesh_broker_nodes"),
                "all_known_after_s": round(ready_s, 1),
                "measured_s": round(took_s, 1),
                "rss_mb": round(after.rss_mb, 1),
                "cores": round((after.cpu_s - before.cpu_s) / took_s, 3),
                "fds": after.fds,
            }


def main() -> int:
    """Measure, tell, judge."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--nodes", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--be", type=int, nargs=3, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.be:
        asyncio.run(stay(*chosen.be))
    row = measure(chosen.nodes, chosen.seconds)
    if chosen.json:
        print(json.dumps(row))
    else:
        for name, value in row.items():
            print(f"{name.replace('_', ' '):18} {value:g}")
    missed = row["rss_mb"] > RSS_MB_MAX or row["cores"] > CORES_MAX
    return int(missed or row["known_at_the_end"] < chosen.nodes)


if __name__ == "__main__":
    sys.exit(main())
