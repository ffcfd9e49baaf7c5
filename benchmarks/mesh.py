"""What the mesh does on this machine: outage, newcomers, churn, tunnel.

    PYTHONPATH=tests python benchmarks/mesh.py outage [--peers 10] [--rounds 5] [--json]
    PYTHONPATH=tests python benchmarks/mesh.py churn [--visitors 400] [--json]
    PYTHONPATH=tests python benchmarks/mesh.py tunnel [--calls 300] [--json]

`outage`: a bootstrap and peers in processes of their own; the bootstrap is killed (SIGKILL); every
peer in turn says a new descriptor, and the clock runs until all others have heard it. Then one
peer after the other is killed and started again with nothing but its file of known peers, and the
clock runs from the start of its process, and from the end of its imports, until it has heard
somebody. `churn`: visitors come to one peer, gossip and leave, in order or by SIGKILL of their
connections; its memory, tasks and file descriptors must not grow. `tunnel`: unary gRPC of 500
bytes through a libp2p tunnel and directly, both over loopback. Exits 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import grpc.aio
import trio

from support.echo_server import echo_server
from support.mesh_churn import SLACK, come_and_go
from support.mesh_peers import Attendee, mesh_config
from support.mesh_processes import Crowd

HEARD_BAR_S: Final = 2.0
JOINED_BAR_S: Final = 5.0
TUNNEL_BAR_MS: Final = 20.0
GROWTH_BYTES_MAX: Final = 16 << 20
CALL_BYTES: Final = 500


async def outage(peers: int, rounds: int) -> tuple[dict[str, Any], bool]:
    """Bars: 2 s until everybody has heard, 5 s until a newcomer has heard somebody."""
    heard_s: list[float] = []
    joined_s: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        async with Crowd(Path(folder)) as crowd:
            boot = await crowd.start()
            others = [await crowd.start(*boot.addresses) for _ in range(peers)]
            settled_s = await crowd.settle(others)
            await asyncio.sleep(5)  # until the peers have written down whom they know
            boot.kill()
            for number in range(rounds * peers):
                heard_s.append(await crowd.spread(others[number % peers], others))
                await asyncio.sleep(0.2)
            await asyncio.sleep(30)  # files are written now and then
            for number in range(rounds):
                others[number].kill()
                others[number] = back = await crowd.start(key=others[number].key)
                joined_s.append(await crowd.first_heard_s(back))
    result = {
        "peers": peers,
        "settled_s": round(settled_s, 2),
        "heard_by_all_s": _spread(heard_s),
        "newcomer_heard_somebody_s": _spread(joined_s),
    }
    return result, max(heard_s) <= HEARD_BAR_S and max(joined_s) <= JOINED_BAR_S


async def churn(visitors: int) -> tuple[dict[str, Any], bool]:
    """Bar: after the first quarter, memory, tasks and descriptors stay as they are."""
    with tempfile.TemporaryDirectory() as folder:
        readings, left = await asyncio.to_thread(trio.run, come_and_go, Path(folder), visitors)
    settled, last = readings[len(readings) // 4], readings[-1]
    result = {
        "visitors": visitors,
        "memory_mb": [round(reading.memory_bytes / 2**20, 1) for reading in readings],
        "tasks": [reading.tasks for reading in readings],
        "descriptors": [reading.descriptors for reading in readings],
        "connections_left": left,
    }
    flat = last.memory_bytes - settled.memory_bytes < GROWTH_BYTES_MAX
    flat = flat and last.tasks <= settled.tasks + SLACK
    return result, flat and last.descriptors <= settled.descriptors + SLACK


async def tunnel(calls: int) -> tuple[dict[str, Any], bool]:
    """Bar: 20 ms for a call, the whole way, in the median."""
    with tempfile.TemporaryDirectory(prefix="nm") as name:
        folder = Path(name)
        socket = folder / "node"
        async with (
            echo_server(socket),
            Attendee(mesh_config(folder, serve_socket=socket)) as node,
            Attendee(mesh_config(folder)) as client,
        ):
            direct_ms = await _calls(f"unix:{socket}", calls)
            began_s = time.monotonic()
            async with client.mesh.open_tunnel(node.node, node.mesh.addresses) as address:
                opened_ms = (time.monotonic() - began_s) * 1000
                through_ms = await _calls(address, calls)
    result = {
        "calls": calls,
        "open_tunnel_ms": round(opened_ms, 1),
        "direct_ms": _spread(direct_ms),
        "tunnel_ms": _spread(through_ms),
    }
    return result, statistics.median(through_ms) <= TUNNEL_BAR_MS


async def _calls(address: str, calls: int) -> list[float]:
    took_ms: list[float] = []
    async with grpc.aio.insecure_channel(address) as channel:
        ask = channel.unary_unary("/bench/Ask")
        for _ in range(calls):
            began_s = time.perf_counter()
            await ask(os.urandom(CALL_BYTES), timeout=30)
            took_ms.append((time.perf_counter() - began_s) * 1000)
    return took_ms


def _spread(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    at = {"p50": ordered[len(ordered) // 2], "p95": ordered[math.ceil(0.95 * len(ordered)) - 1]}
    return {name: round(value, 3) for name, value in (*at.items(), ("worst", ordered[-1]))}


def main() -> int:
    """One of the measurements, told on stdout."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=["outage", "churn", "tunnel"])
    parser.add_argument("--peers", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--visitors", type=int, default=400)
    parser.add_argument("--calls", type=int, default=300)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    kinds: dict[str, Callable[[], Awaitable[tuple[dict[str, Any], bool]]]] = {
        "outage": lambda: outage(given.peers, given.rounds),
        "churn": lambda: churn(given.visitors),
        "tunnel": lambda: tunnel(given.calls),
    }

    async def run() -> tuple[dict[str, Any], bool]:
        return await kinds[given.what]()

    result, kept = asyncio.run(run())
    result["bar"] = "kept" if kept else "MISSED"
    if given.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name.ljust(28)} {value}")
    return int(not kept)


if __name__ == "__main__":
    sys.exit(main())
