"""How others reach this node: where it listens, what its router passes on, and the mesh.

Rules: all of it is the owner's choice and off by default; nothing here is needed to work, since the
node dials out; what is open is told in the descriptor and closed again on the way out; a machine
that wakes up in another network tells its new address. Clients find out themselves whether an
address leads here.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from novamesh.mesh_settings import mesh_config
from novamesh_broker.daemon_thread import in_daemon_thread
from novamesh_node import direct_service, port_map
from novamesh_node.clock import Clock
from novamesh_node.config import NodeConfig
from novamesh_node.descriptor import Advertiser
from novamesh_node.endpoint import ANYWHERE, endpoint_of
from novamesh_node.front import Front
from novamesh_node.mesh_presence import MeshPresence
from novamesh_proto.identity import PrivateKey

ADDRESS_S: Final = 5.0  # between two looks at which address is ours: descriptors change no faster

Say = Callable[[str, str], None]


@dataclass(frozen=True, slots=True)
class Reach:
    """What is open now, for whoever asks about this node."""

    advertiser: Advertiser
    mesh: MeshPresence | None

    def told(self) -> dict[str, object]:
        """As `novamesh node status` and `novamesh net check` show it."""
        peers = {} if self.mesh is None else {"peers": self.mesh.peers}
        return {"endpoints": list(self.advertiser.endpoints), **peers}


@contextlib.asynccontextmanager
async def opened(
    config: NodeConfig,
    key: PrivateKey,
    front: Front,
    advertiser: Advertiser,
    clock: Clock,
    say: Say,
) -> AsyncIterator[Reach]:
    """Be reachable while inside, as far as the owner wants it.

    Raises:
        NovaMeshError: CONFLICT if the port is taken, BAD_CONFIG for a mesh that makes no sense.
    """
    async with contextlib.AsyncExitStack() as stack:
        socket = stack.enter_context(_tunnel_socket()) if config.mesh.on else None
        listener = await stack.enter_async_context(
            direct_service.listen(front, key, config.listen, socket)
        )
        if listener.port:
            await _tell_endpoint(stack, config, listener.port, advertiser, say)
        mesh = None
        if socket is not None:
            mesh = MeshPresence(
                mesh_config(
                    config.mesh, config.pool.network, key, config.places.node / "peers.json", socket
                ),
                lambda: advertiser.current(clock.wall_ms()),
                lambda addresses: advertiser.listen_at("mesh", addresses),
                clock,
            )
            stack.push_async_callback(_end, asyncio.create_task(mesh.run(), name="mesh"))
        yield Reach(advertiser, mesh)


async def _tell_endpoint(
    stack: contextlib.AsyncExitStack,
    config: NodeConfig,
    port: int,
    advertiser: Advertiser,
    say: Say,
) -> None:
    host, _, _ = config.listen.rpartition(":")
    told = config.endpoint or await _look_up(host, port, config.pool.address)
    advertiser.listen_at("grpc", (told,))
    say("listens", f"at {host}:{port}, clients are told {told}")
    if host in ANYWHERE and not config.endpoint:
        following = _follow_address(host, port, config.pool.address, told, advertiser, say)
        stack.push_async_callback(_end, asyncio.create_task(following, name="address"))
    if not config.map_port:
        return

    def moved(endpoint: str | None) -> None:
        advertiser.listen_at("router", (endpoint,) if endpoint else ())

    mapped = await stack.enter_async_context(port_map.mapped(port, moved))
    moved(mapped)
    say(
        "router", f"passes {mapped} on to this node" if mapped else "passes no port on to this node"
    )


async def _look_up(host: str, port: int, pool: str, before: str = "") -> str:
    """As `endpoint_of`. A pool's name is looked up, which no end of this node waits for."""
    return await in_daemon_thread("endpoint", lambda: endpoint_of(host, port, pool, before))


async def _follow_address(
    host: str, port: int, pool: str, told: str, advertiser: Advertiser, say: Say
) -> None:
    """Tell clients where this machine is, whenever it is somewhere else."""
    while True:
        await asyncio.sleep(ADDRESS_S)
        now = await _look_up(host, port, pool, told)
        if now != told:
            told = now
            advertiser.listen_at("grpc", (told,))
            say("moved", f"clients are told {told} from now on")


@contextlib.contextmanager
def _tunnel_socket() -> Iterator[Path]:
    """A path that only this user reaches, and short enough for a socket's name."""
    with tempfile.TemporaryDirectory(prefix="novamesh-") as folder:  # mode 0700
        yield Path(folder) / "grpc"


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
