"""What a node is set to: one frozen value from flags, environment, file and defaults.

Rules: flag > NOVAMESH_NODE_* > `[node]` of config.toml > default; unknown keys are errors. The pool
comes from a join code (--join, else NOVAMESH_JOIN) or from `[pool]`, which client and node share.
Nothing is written here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from novamesh import settings
from novamesh.config import Places, Pool, find_places, load_pool, read_tables
from novamesh.mesh_settings import MeshSettings, load_mesh_settings
from novamesh.settings import option
from novamesh.transport import split_address
from novamesh_node.admission import Policy
from novamesh_node.desk import SLOTS_MAX
from novamesh_proto.broker import Broker, read_broker
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.identity import parse_node_id
from novamesh_proto.join_code import parse_join_code
from novamesh_proto.limits import CONTEXT_TOKENS_MAX, MODELS_MAX

LOG_FORMATS: Final = ("text", "json")
JOIN_VARIABLE: Final = "NOVAMESH_JOIN"


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """The keys of `[node]`."""

    models: str = option("nova-pico", "models to serve, by name or path, separated by commas")
    slots: int = option(
        4, "jobs at the same time on each device", unit="jobs", least=1, greatest=SLOTS_MAX
    )
    threads: int = option(
        0, "processor threads to compute with; 0 = half of them", least=0, greatest=1024
    )
    device: str = option(
        "cpu", "what computes: cpu, cuda, cuda:N, a GPU's id; several with commas; all GPUs: all",
        least=1, greatest=4096,
    )  # fmt: skip
    log_format: str = option("text", "text for people, json for programs", least=1, greatest=8)
    tokens_max: int = option(
        0, "longest answer; 0 = whatever the model can", unit="tokens", least=0,
        greatest=CONTEXT_TOKENS_MAX,
    )  # fmt: skip
    refused_clients: str = option(
        "", "PeerIds of clients this node does not work for, separated by commas", greatest=65536
    )
    mqtt: str = option(
        "", "mqtts://USER@HOST:PORT of the broker to be found by; empty = none", greatest=512
    )
    mqtt_password_file: str = option("", "file with the broker's password", greatest=4096)
    mqtt_ca: str = option(
        "", "PEM file of authorities to trust instead of the system's", greatest=4096
    )
    listen: str = option(
        "", "HOST:PORT at which clients reach this node themselves; empty = it only dials out",
        greatest=255,
    )  # fmt: skip
    endpoint: str = option(
        "", "HOST:PORT that clients are told; empty = this machine's own address", greatest=160
    )
    donate: bool = option(
        False,
        "work for clients while the coordinator is away, unpaid, in at most half of the slots",
    )
    map_port: bool = option(False, "ask the home router to pass our port on")


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """Everything a node process is set to. `joining`: the pool comes from a code, not the file."""

    places: Places
    pool: Pool
    joining: bool
    models: tuple[str, ...]
    slots: int
    threads: int
    device: str
    log_format: str
    policy: Policy
    broker: Broker | None
    listen: str
    endpoint: str
    map_port: bool
    mesh: MeshSettings


def load_node_config(
    home: Path | None = None,
    env: Mapping[str, str] | None = None,
    flags: Mapping[str, object] | None = None,
    join: str | None = None,
    mesh: bool | None = None,
) -> NodeConfig:
    """The configuration of `node start`; `flags` are keys of `NodeSettings`.

    A join code stays good for every start: membership is asked for only where it is lacking.

    Raises:
        NovaMeshError: BAD_CONFIG naming file, variable and key, or saying how to join a pool;
            BAD_REQUEST for a bad flag or join code.
    """
    env = os.environ if env is None else env
    places = find_places(home, env)
    tables = read_tables(places.config_file)
    file = str(places.config_file)
    chosen = settings.resolve(
        NodeSettings, "node", flags=flags, env=env, table=tables.get("node"), file=file
    )
    if chosen.log_format not in LOG_FORMATS:
        raise NovaMeshError(
            Code.BAD_CONFIG, f"node.log_format is {chosen.log_format!r}", "choose text or json"
        )
    models = tuple(dict.fromkeys(_split(chosen.models)))
    if not 1 <= len(models) <= MODELS_MAX:
        raise NovaMeshError(
            Code.BAD_CONFIG, f"node.models names {len(models)} models", f"name 1 to {MODELS_MAX}"
        )
    joined = _pool_to_join(join, env)
    return NodeConfig(
        places=places,
        pool=joined or _require(load_pool(places, env, tables)),
        joining=joined is not None,
        models=models,
        slots=chosen.slots,
        threads=chosen.threads or max(1, _processors() // 2),
        device=chosen.device,
        log_format=chosen.log_format,
        broker=read_broker(chosen.mqtt, chosen.mqtt_password_file, chosen.mqtt_ca),
        policy=Policy(
            chosen.tokens_max,
            frozenset(parse_node_id(text) for text in _split(chosen.refused_clients)),
            chosen.donate,
        ),
        listen=_address("listen", chosen.listen, port_least=0),
        endpoint=_address("endpoint", chosen.endpoint),
        map_port=chosen.map_port,
        mesh=load_mesh_settings(places, env, {"on": mesh}),
    )


def _pool_to_join(join: str | None, env: Mapping[str, str]) -> Pool | None:
    """The pool of the flag's join code, else of the environment's, where an empty one is none."""
    if join is not None:
        return Pool.from_join_code(parse_join_code(join))
    text = env.get(JOIN_VARIABLE, "")
    if not text.strip():
        return None
    try:
        return Pool.from_join_code(parse_join_code(text))
    except NovaMeshError as error:
        message = f"{JOIN_VARIABLE}: {error.message}"
        raise NovaMeshError(Code.BAD_CONFIG, message, error.hint) from None


def _processors() -> int:
    """Processors that this process may use, where the system tells."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _address(name: str, text: str, port_least: int = 1) -> str:
    """HOST:PORT, or nothing."""
    try:
        if text:
            split_address(text, port_least)
    except NovaMeshError as error:
        raise NovaMeshError(Code.BAD_CONFIG, f"node.{name}: {error.message}", error.hint) from None
    return text


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _require(pool: Pool | None) -> Pool:
    if pool is None:
        raise NovaMeshError(
            Code.BAD_CONFIG,
            "this machine has not joined a pool",
            "ask a pool's owner for a code, then:  novamesh node start --join CODE",
        )
    return pool
