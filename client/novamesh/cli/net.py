"""`novamesh net …`: which ways between this machine and the pool work, and why not.

Rules: looking changes nothing, here or elsewhere; the router is asked only with --upnp. What is
seen is judged in `net_check`; here it is only looked at, each look with a bound.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.metadata
import importlib.util
import os
import socket
import sys
import time
from dataclasses import asdict
from typing import Annotated, Any, Final

from cyclopts import App, Parameter

from novamesh.cli.output import mark, write_json, write_status
from novamesh.cli.pool import clock_offset_ms
from novamesh.cli.scope import HERE, Json, Scope
from novamesh.clock import Clock
from novamesh.config import Config, read_tables
from novamesh.net_check import NodeSeen, PoolSeen, RouterSeen, Seen, failed, judge
from novamesh.pool import PoolConnection
from novamesh.transport import split_address
from novamesh_broker import dialling
from novamesh_broker.entrance import open_entrance
from novamesh_proto.broker import Broker, read_broker
from novamesh_proto.errors import NovaMeshError
from novamesh_proto.identity import PrivateKey

BROKER_S: Final = 5.0
NODE_S: Final = 5.0

app = App(name="net", help="The network between this machine and the pool.")


@app.command
async def check(
    *,
    upnp: Annotated[
        bool, Parameter(negative=(), help="Also ask the router whether it would map a port.")
    ] = False,
    json: Json = False,
    scope: Scope = HERE,
) -> int:
    """Say which paths work, and why the others do not. The exit status is 1 if one is broken."""
    config = scope.config()
    pool = config.require_pool()
    reached, node, broker, routers = await asyncio.gather(
        _pool(config), _node(config), _broker(config), _routers(upnp)
    )
    address, trouble = broker
    checks = judge(
        Seen(
            address=pool.address,
            pool=reached,
            local_address=_local_address(pool.address),
            node=node,
            libp2p=_version("libp2p"),
            broker=address,
            broker_error=trouble,
            routers=routers,
        )
    )
    if json:
        write_json([asdict(check) for check in checks])
    else:
        for check in checks:
            write_status(check.status, f"{check.path.ljust(7)}  {check.reason}")
            if check.todo:
                mark("hint", check.todo, sys.stdout)
    return int(failed(checks))


async def _pool(config: Config) -> PoolSeen | NovaMeshError:
    """The pool's answer: dialled, its pin checked, then asked once more to see the round trip."""
    pool = config.require_pool()
    # A key for this call only: looking makes no files, and the card is for anybody.
    connection = PoolConnection(
        pool, PrivateKey.generate(), Clock.system(), config.client.connect_timeout_s
    )
    try:
        await connection.hello()
        began_s = time.monotonic()
        card = await connection.hello()
        took_s = time.monotonic() - began_s
    except NovaMeshError as error:
        return error
    finally:
        await connection.close()
    return PoolSeen(pool.network, took_s * 1000, clock_offset_ms(card, took_s))


async def _node(config: Config) -> NodeSeen | None:
    """What a node that runs here says; None if none does."""
    control: Any = importlib.import_module("novamesh_node.control")
    try:
        status = await control.ask(config.places.node_socket, "status", deadline_s=NODE_S)
    except NovaMeshError:
        return None
    return NodeSeen(
        attached=bool(status.get("attached")),
        trouble=str(status.get("trouble", "")),
        endpoints=tuple(map(str, status.get("endpoints", ()))),
        peers=status.get("peers"),
    )


async def _broker(config: Config) -> tuple[str, str]:
    """The broker that is set here, and why it cannot be reached; empty if it can."""
    try:
        broker = _find_broker(config)
        if broker is None:
            return "", ""
        async with asyncio.timeout(BROKER_S):
            line = await dialling.dial(open_entrance(broker))
        line.close()
    except NovaMeshError as error:
        return "config.toml", error.message
    except TimeoutError:
        return str(broker), f"no answer within {BROKER_S:g} s"
    except (OSError, ValueError) as error:  # TLS errors are OSErrors too
        return str(broker), getattr(error, "strerror", None) or str(error)
    return str(broker), ""


def _find_broker(config: Config) -> Broker | None:
    """As the node reads it, else as the client does. Raises BAD_CONFIG."""
    table = read_tables(config.places.config_file).get("node", {})
    keys = ("mqtt", "mqtt_password_file", "mqtt_ca")
    said = (os.environ.get(f"NOVAMESH_NODE_{key.upper()}") or table.get(key, "") for key in keys)
    own = config.client
    return read_broker(*map(str, said)) or read_broker(
        own.mqtt, own.mqtt_password_file, own.mqtt_ca
    )


async def _routers(wanted: bool) -> tuple[RouterSeen, ...] | NovaMeshError | None:
    """Routers that map ports, if somebody wants them to be asked."""
    if not wanted:
        return None
    port_map: Any = importlib.import_module("novamesh_node.port_map")
    try:
        found = await port_map.find_home_routers()
    except NovaMeshError as error:
        return error
    return tuple(RouterSeen(one.protocol, one.public_address) for one in found)


def _local_address(address: str) -> str:
    """The address that this machine would dial the pool from; nothing is sent to find out."""
    host, port = split_address(address.partition(",")[0])
    try:
        family, kind, protocol, _, there = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(there)
            return str(probe.getsockname()[0])
    except OSError:
        return ""


def _version(package: str) -> str | None:
    """The version of a package that can be imported, without importing it."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        if importlib.util.find_spec(package) is not None:
            return importlib.metadata.version(package)
    return None
