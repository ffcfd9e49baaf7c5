"""Visitors who come to one mesh peer and leave, every second one without a word."""

from __future__ import annotations

import contextlib
import gc
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil
import trio
from libp2p.abc import IHost

from novamesh.mesh.host import HostConfig, dial, open_host
from novamesh_proto.errors import NovaMeshError
from novamesh_proto.identity import PrivateKey
from support.mesh_peers import Companion, Said, encode, mesh_config, trio_until

AT_ONCE: Final = 8
READINGS: Final = 8
SETTLE_S: Final = 60.0
DIALS_MAX: Final = 5
SLACK: Final = 4  # tasks or files that are just about to end when they are counted


@dataclass(frozen=True, slots=True)
class Reading:
    """What a process holds; there is nobody in it but the visited peer."""

    memory_bytes: int
    tasks: int
    descriptors: int


async def come_and_go(folder: Path, visitors: int) -> tuple[list[Reading], int]:
    """Readings as time goes by, the last one when all have left; connections that stayed."""
    host = Companion(mesh_config(folder))
    readings: list[Reading] = []
    async with trio.open_nursery() as nursery:
        await nursery.start(host.peer.run)
        for start in range(0, visitors, AT_ONCE):
            async with trio.open_nursery() as visit:
                for number in range(start, min(start + AT_ONCE, visitors)):
                    visit.start_soon(_visit, host, folder, number)
            if start % max(AT_ONCE, visitors // READINGS // AT_ONCE * AT_ONCE) == 0:
                readings.append(await _settled(host))
        readings.append(await _settled(host))
        left = host.peer.connections
        nursery.cancel_scope.cancel()
    return readings, left


async def _visit(host: Companion, folder: Path, number: int) -> None:
    if number % 2:
        async with open_host(HostConfig(PrivateKey.generate(), ())) as visitor:
            await _reach(visitor, host)
            await trio.sleep(0.5)
            for connections in visitor.get_network().connections.values():
                for connection in connections:  # as a machine that loses its power
                    await connection.muxed_conn.secured_conn.close()
        return
    visitor = Companion(mesh_config(folder, host.peer.addresses, peers_file=folder / "visitor"))
    async with trio.open_nursery() as nursery:
        await nursery.start(visitor.peer.run)
        visitor.peer.say(encode(Said(visitor.node, (), number + 1)), ())
        with trio.move_on_after(20):
            while visitor.node not in host.heard:  # noqa: ASYNC110
                await trio.sleep(0.02)
        nursery.cancel_scope.cancel()


async def _reach(visitor: IHost, host: Companion) -> None:
    """Dial until somebody answers: a busy machine is no dead one."""
    for _ in range(DIALS_MAX - 1):
        with contextlib.suppress(NovaMeshError):
            await dial(visitor, host.node, host.peer.addresses)
            return
    await dial(visitor, host.node, host.peer.addresses)


async def _settled(host: Companion) -> Reading:
    """When nobody is connected and what ends has ended."""
    await trio_until(lambda: not host.peer._host.get_connected_peers(), SETTLE_S)
    await trio.sleep(1)
    gc.collect()
    process = psutil.Process()
    tasks = trio.lowlevel.current_statistics().tasks_living
    return Reading(process.memory_info().rss, tasks, process.num_fds())
