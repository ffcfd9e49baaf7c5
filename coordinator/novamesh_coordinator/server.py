"""Put the parts together and serve: store → core → sequencer → services → gRPC and HTTP.

Rules: state is loaded and checked before anybody may connect; on the way out nodes are told first,
calls get GRACE_S to end, what was decided is committed, then a snapshot makes the next start quick.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
import resource
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from typing import Any, Final

import grpc
import grpc.aio
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from novamesh_coordinator.admin_service import AdminService
from novamesh_coordinator.broker_wiring import presence_loops, small_broker
from novamesh_coordinator.collector import calm_collector
from novamesh_coordinator.config import (
    CoordinatorConfig,
    Folder,
    PostgresUrl,
    find_database,
    split_address,
)
from novamesh_coordinator.core import Core, PoolIdentity
from novamesh_coordinator.doorstep import Doorstep
from novamesh_coordinator.http import Page, serve_pages
from novamesh_coordinator.hub import Hub
from novamesh_coordinator.key_file import load_key, write_text
from novamesh_coordinator.metrics import Metrics
from novamesh_coordinator.node_service import NodeService
from novamesh_coordinator.pool_service import PoolService
from novamesh_coordinator.sequencer import Clock, Sequencer
from novamesh_coordinator.service import SERVER_OPTIONS, Door, Limits
from novamesh_coordinator.standby import Standby
from novamesh_coordinator.store import Store, open_store, open_store_to_follow
from novamesh_coordinator.verifier import Verifier
from novamesh_proto.buckets import Rate
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.transport_identity import ServerCertificate, make_certificate
from novamesh_proto.v1 import coordinator_pb2_grpc, node_pb2_grpc

GRACE_S: Final = 3.0
FILES_MAX: Final = 65_536
SERVICES: Final = (
    "",
    "novamesh.v1.PoolService",
    "novamesh.v1.NodeService",
    "novamesh.v1.AdminService",
)
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Running:
    """A coordinator that takes calls."""

    door: Door
    grpc_port: int
    http_port: int


def wall_clock() -> Clock:
    """The machine's clocks."""
    return Clock(lambda: time.time_ns() // 1_000_000, time.monotonic)


@contextlib.asynccontextmanager
async def run_coordinator(
    identity: PoolIdentity,
    store: Store,
    config: CoordinatorConfig,
    *,
    clock: Clock | None = None,
    seed: int | None = None,
    bind: str | None = None,
    core: Core | None = None,
) -> AsyncIterator[Running]:
    """Serve while inside.

    Args:
        identity: Key and name of the pool.
        store: Its open database.
        config: What it is set to.
        clock: Other clocks than the machine's.
        seed: Of the rng that draws candidates; the system's randomness where None.
        bind: A gRPC address without TLS (unix:PATH) instead of `config.listen`, for tests.
        core: The state where it has been read from the store already.

    Raises:
        NovaMeshError: CORRUPT, STORAGE, CONFLICT if a port is taken.
    """
    clock = clock or wall_clock()
    if core is None:
        core = await load_core(identity, store, clock)
    else:
        core.recover(clock.now())
    certificate = None if bind else make_certificate(identity.key, datetime.now(UTC))
    door = make_door(core, store, config, clock, seed, certificate)
    server, health_servicer = _grpc_server(door, config)
    door.bouncer.port = port = _bind(server, bind or config.listen, certificate)
    async with _ungrouped(), contextlib.AsyncExitStack() as stack:
        http_port = await _serve_http(stack, config, _pages(door))
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        await stack.enter_async_context(small_broker(config, identity.network))
        found = presence_loops(door, config)
        running = (*door.sequencer.loops(), door.bouncer.run, store.guard, *found)
        loops = [tasks.create_task(loop(), name=loop.__qualname__) for loop in running]
        await server.start()
        for service in SERVICES:
            await health_servicer.set(service, health_pb2.HealthCheckResponse.SERVING)
        try:
            yield Running(door, port, http_port)
        finally:
            await _stop(door, server, health_servicer)
            for task in loops:
                task.cancel()


@contextlib.asynccontextmanager
async def _ungrouped() -> AsyncIterator[None]:
    """An error that came alone is raised as itself, so that its code sets the exit status."""
    try:
        yield
    except BaseExceptionGroup as group:
        alone: BaseException = group
        while isinstance(alone, BaseExceptionGroup) and len(alone.exceptions) == 1:
            alone = alone.exceptions[0]
        raise alone from None


async def load_core(identity: PoolIdentity, store: Store, clock: Clock) -> Core:
    """The core as the log says, its live attempts with new leases.

    Raises:
        NovaMeshError: CORRUPT, STORAGE.
    """
    began_s = time.monotonic()
    loaded = await store.load()
    core = Core(identity, loaded.state)
    core.replay(loaded.records)
    core.recover(clock.now())
    _log.info(
        "log read",
        events=store.mark.seq,
        replayed=len(loaded.records),
        jobs=len(core.jobs),
        took_ms=int((time.monotonic() - began_s) * 1000),
    )
    return core


def make_door(
    core: Core,
    store: Store,
    config: CoordinatorConfig,
    clock: Clock,
    seed: int | None = None,
    certificate: ServerCertificate | None = None,
) -> Door:
    """What every service needs, joined; arguments as `run_coordinator`."""
    hub, identity = Hub(), core.identity
    rng = random.SystemRandom() if seed is None else random.Random(seed)
    per_s = float(config.requests_per_s)
    sequencer = Sequencer(core, store, clock, rng, hub.deliver)
    return Door(
        identity=identity,
        key_digest=certificate.key_digest if certificate else bytes(32),
        # The sequencer's core, whichever it is by then: a failed disk makes it a new one.
        verifier=Verifier(
            identity.key.node_id,
            identity.network,
            lambda party: sequencer.core.membership.require(party),
        ),
        sequencer=sequencer,
        hub=hub,
        store=store,
        clock=clock,
        metrics=Metrics(),
        version=metadata.version("novamesh"),
        limits=Limits(
            address=Rate(2 * per_s, 6 * per_s),
            party=Rate(per_s, 4 * per_s),
            connections=4 * config.requests_per_s,
            guests=config.rpcs_max // 16,
            all_guests=config.rpcs_max // 2,
        ),
    )


def _grpc_server(
    door: Door, config: CoordinatorConfig
) -> tuple[grpc.aio.Server, health.aio.HealthServicer]:
    server = grpc.aio.server(options=SERVER_OPTIONS, maximum_concurrent_rpcs=config.rpcs_max)
    doorstep: Any = Doorstep(server, door)  # a server, as far as services see one
    coordinator_pb2_grpc.add_PoolServiceServicer_to_server(PoolService(door), doorstep)
    coordinator_pb2_grpc.add_AdminServiceServicer_to_server(AdminService(door), doorstep)
    node_pb2_grpc.add_NodeServiceServicer_to_server(NodeService(door), doorstep)
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, doorstep)
    return server, servicer


def _bind(server: grpc.aio.Server, address: str, certificate: ServerCertificate | None) -> int:
    if certificate is None:
        return server.add_insecure_port(address)
    pair = (certificate.private_key_pem, certificate.certificate_pem)
    try:
        # Asked first, because gRPC tells its own log why it cannot listen, and us nothing.
        _probe(address)
        return server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
    except OSError as error:
        raise _deaf(address, "--listen", error) from error
    except RuntimeError as error:
        taken = OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        raise _deaf(address, "--listen", taken) from error


def _probe(address: str) -> None:
    """Listen for a moment. Raises OSError where that is refused."""
    host, port = split_address(address, "listen")
    found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    family, kind, protocol, _, where = found[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(where)
        probe.listen(1)


def _deaf(address: str, flag: str, error: OSError) -> NovaMeshError:
    """Why nobody can be heard at an address, and what to do about it."""
    host, port = split_address(address, flag)
    other_port = f"choose another with {flag} HOST:PORT (port 0 = any free one)"
    if error.errno == errno.EADDRINUSE:
        problem, hint = f"another program uses port {port}", f"stop it, or {other_port}"
    elif error.errno == errno.EACCES:
        problem, hint = f"port {port} is for the system's own services", other_port
    elif error.errno == errno.EADDRNOTAVAIL or isinstance(error, socket.gaierror):
        problem = f"{host} is no address of this machine"
        hint = f"name one of its own, or all of them: {flag} 0.0.0.0:{port}"
    else:
        problem, hint = error.strerror or str(error), other_port
    return NovaMeshError(Code.CONFLICT, f"cannot listen on {address}: {problem}", hint)


async def _serve_http(
    stack: contextlib.AsyncExitStack, config: CoordinatorConfig, pages: dict[str, Page]
) -> int:
    if not config.http:
        return 0
    host, port = split_address(config.http, "http")
    try:
        return await stack.enter_async_context(serve_pages(host, port, pages))
    except OSError as error:
        raise _deaf(config.http, "--http", error) from error


def _pages(door: Door) -> dict[str, Page]:
    def metrics() -> tuple[int, str, bytes]:
        tasks = len(asyncio.all_tasks())
        page = door.metrics.collect(door.sequencer.core, door.sequencer.healthy, tasks)
        return 200, "text/plain; version=0.0.4; charset=utf-8", page

    def healthz() -> tuple[int, str, bytes]:
        if door.sequencer.healthy:
            return 200, "text/plain", b"ok\n"
        return 503, "text/plain", b"the disk takes no writes\n"

    return {"/metrics": metrics, "/healthz": healthz}


async def _stop(
    door: Door, server: grpc.aio.Server, health_servicer: health.aio.HealthServicer
) -> None:
    await health_servicer.enter_graceful_shutdown()
    door.hub.say_goodbye(Code.UNAVAILABLE, "the coordinator stops")
    await server.stop(GRACE_S)
    try:
        await door.sequencer.save()
    except NovaMeshError as error:
        _log.warning("snapshots are behind at the end", error=error.message)


async def serve(
    folder: Folder,
    config: CoordinatorConfig,
    ready: Callable[[Running], None],
    standing_by: Callable[[int], None] | None = None,
) -> None:
    """Serve the coordinator of a folder until SIGTERM or SIGINT; `ready` is called once.

    Where `standing_by` is given, another coordinator may be the one that writes: it is called with
    the port of /healthz, and serving begins when that one has ended.

    Raises:
        NovaMeshError: NOT_FOUND if there is none, and as `run_coordinator`.
    """
    identity = PoolIdentity(load_key(folder.key), config.network, config.open)
    where = find_database(folder, config)
    _allow_files()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    with calm_collector() as loaded:
        if standing_by is not None and isinstance(where, PostgresUrl):
            store = open_store_to_follow(where)
        else:
            store = await open_store(where)
        try:
            core = None
            if standing_by is not None:
                core = await _await_turn(Standby(identity, store), config, standing_by, stop)
            if stop.is_set():
                return
            async with run_coordinator(identity, store, config, core=core) as running:
                host, _ = split_address(config.listen, "listen")
                write_text(folder.address, f"{host}:{running.grpc_port}\n")
                loaded()
                ready(running)
                await stop.wait()
                _log.info("stopping")
        finally:
            await store.close()


async def _await_turn(
    standby: Standby, config: CoordinatorConfig, told: Callable[[int], None], stop: asyncio.Event
) -> Core | None:
    """What `Standby.wait` gives; None too if it is told to stop before."""
    async with contextlib.AsyncExitStack() as stack:
        pages: dict[str, Page] = {"/healthz": lambda: (200, "text/plain", b"standby\n")}
        told(await _serve_http(stack, config, pages))
        turn = asyncio.create_task(standby.wait())
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait((turn, stopped), return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not turn.done():
            turn.cancel()
            await asyncio.wait((turn,))
            return None
        return turn.result()


def _allow_files() -> None:
    """As many open files as the system lets us have: each connection is one, and so is the log."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES_MAX if most == resource.RLIM_INFINITY else min(FILES_MAX, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
