"""What a coordinator is set to: flag > env NOVAMESH_* > coordinator/config.toml > default.

Rules: one frozen dataclass, built once; every option states its range; unknown keys are errors;
nobody else reads the environment. The folder is $NOVAMESH_HOME/coordinator, or below the platform's
data folder.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

import platformdirs

from novamesh_proto.errors import Code, NovaMeshError

HOME_VARIABLE: Final = "NOVAMESH_HOME"
PREFIX: Final = "NOVAMESH_COORDINATOR_"
DEFAULT_LISTEN: Final = "127.0.0.1:7700"
DEFAULT_HTTP: Final = "127.0.0.1:7701"
LOG_FORMATS: Final = ("text", "json")
NETWORK_BYTES_MAX: Final = 64
_ADDRESS: Final = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):(?P<port>[0-9]{1,5})")


@dataclass(frozen=True, slots=True)
class CoordinatorConfig:
    """Everything a coordinator process is set to."""

    network: str = ""  # name of the pool, 1 to 64 bytes; set by init
    listen: str = DEFAULT_LISTEN  # HOST:PORT of the gRPC service, port 0 = any free one
    http: str = DEFAULT_HTTP  # HOST:PORT of /metrics and /healthz; empty = none
    address: str = ""  # HOST:PORT that members dial, where it differs from listen
    open: bool = False  # whether anybody may join without an invite
    rpcs_max: int = 4096  # calls at the same time, 16 to 65536; each attached node is one
    requests_per_s: int = 100  # of one member, of an address twice as many, 1 to 100000
    log_format: str = "text"  # text for people, json for programs


@dataclass(frozen=True, slots=True)
class Folder:
    """Where the coordinator's files are."""

    path: Path

    @property
    def key(self) -> Path:
        """Its identity."""
        return self.path / "coordinator.key"

    @property
    def config(self) -> Path:
        """What it is set to."""
        return self.path / "config.toml"

    @property
    def database(self) -> Path:
        """Its log."""
        return self.path / "coordinator.db"

    @property
    def address(self) -> Path:
        """Where it listens, written at each start."""
        return self.path / "address"


def find_folder(home: Path | None = None, env: Mapping[str, str] | None = None) -> Folder:
    """The coordinator's folder below `home`, NOVAMESH_HOME or the platform's data folder.

    Raises:
        NovaMeshError: BAD_CONFIG if that is the folder of ~somebody whom nobody knows.
    """
    env = os.environ if env is None else env
    if home is None and env.get(HOME_VARIABLE):
        home = Path(env[HOME_VARIABLE])
    if home is None:
        home = platformdirs.user_data_path("novamesh", appauthor=False)
    try:
        return Folder(home.expanduser().absolute() / "coordinator")
    except RuntimeError:
        raise NovaMeshError(
            Code.BAD_CONFIG, f"nobody on this machine has the home folder {home.parts[0]!r}",
            f"name a folder with --home or {HOME_VARIABLE}",
        ) from None  # fmt: skip


def load_config(
    folder: Folder,
    flags: Mapping[str, object] | None = None,
    env: Mapping[str, str] | None = None,
) -> CoordinatorConfig:
    """The configuration; `flags` that are None were not given.

    Raises:
        NovaMeshError: BAD_CONFIG, naming where the value came from.
    """
    env = os.environ if env is None else env
    values: dict[str, Any] = {}
    for name, value in _read_file(folder.config).items():
        values[name] = _convert(name, value, str(folder.config))
    for variable, text in env.items():
        if variable.startswith(PREFIX):
            name = variable.removeprefix(PREFIX).lower()
            values[name] = _convert(name, text, variable)
    for name, value in (flags or {}).items():
        if value is not None:
            values[name] = _convert(name, value, f"--{name}")
    config = CoordinatorConfig(**values)
    _check(config)
    return config


def write_config(config: CoordinatorConfig) -> str:
    """The file that `init` writes: what differs from the defaults."""
    lines = ["# What this pool is set to. Every key: docs/cli.md, Settings of a coordinator.\n"]
    for field in fields(CoordinatorConfig):
        value = getattr(config, field.name)
        if value != field.default:
            # Strings that _check lets pass, numbers and truths are written alike in JSON and TOML.
            lines.append(f"{field.name} = {json.dumps(value, ensure_ascii=False)}\n")
    return "".join(lines)


def split_address(text: str, name: str) -> tuple[str, int]:
    """Host (brackets and all) and port of HOST:PORT.

    Raises:
        NovaMeshError: BAD_CONFIG.
    """
    found = _ADDRESS.fullmatch(text)
    if found is None or int(found["port"]) > 65_535:
        raise NovaMeshError(
            Code.BAD_CONFIG, f"{name} is {text!r}, not HOST:PORT", "such as 127.0.0.1:7700"
        )
    return found["host"], int(found["port"])


def is_wildcard(address: str) -> bool:
    """Whether HOST:PORT means every address of a machine: to listen on, but not to dial."""
    host, _ = split_address(address, "address")
    return not host.strip("[]0.:")


def check_dialled(address: str, name: str) -> None:
    """Refuse what nobody can dial.

    Raises:
        NovaMeshError: BAD_CONFIG.
    """
    _, port = split_address(address, name)
    if is_wildcard(address) or port == 0:
        raise NovaMeshError(
            Code.BAD_CONFIG,
            f"{name} is {address!r}, which nobody can dial",
            "name the machine as members reach it, such as pool.example.org:7700",
        )


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise NovaMeshError(Code.BAD_CONFIG, f"{path} is not TOML: {error}", "mend it") from error
    except OSError as error:
        raise NovaMeshError(Code.STORAGE, f"cannot read {path}: {error.strerror}") from error


def _convert(name: str, value: object, source: str) -> object:
    """The value in its option's type."""
    known = {field.name: type(field.default) for field in fields(CoordinatorConfig)}
    if name not in known:
        names = ", ".join(known)
        raise NovaMeshError(
            Code.BAD_CONFIG, f"{source} sets {name!r}, which is no option", f"options: {names}"
        )
    kind = known[name]
    if kind is bool and isinstance(value, str) and value.lower() in ("true", "false", "1", "0"):
        return value.lower() in ("true", "1")
    if kind is int and isinstance(value, str) and value.isdecimal():
        return int(value)
    if type(value) is not kind:
        raise NovaMeshError(
            Code.BAD_CONFIG, f"{source}: {name} is {value!r}, not a {kind.__name__}", "mend it"
        )
    return value


def _check(config: CoordinatorConfig) -> None:
    _check_name(config.network)
    split_address(config.listen, "listen")
    if config.http:
        split_address(config.http, "http")
    if config.address:
        check_dialled(config.address, "address")
    if config.log_format not in LOG_FORMATS:
        raise NovaMeshError(
            Code.BAD_CONFIG, f"log_format is {config.log_format!r}", "choose text or json"
        )
    for name, least, most in (("rpcs_max", 16, 65_536), ("requests_per_s", 1, 100_000)):
        value = getattr(config, name)
        if not least <= value <= most:
            raise NovaMeshError(
                Code.BAD_CONFIG, f"{name} is {value}, allowed is {least} to {most}", "mend it"
            )


def _check_name(network: str) -> None:
    if not network.isprintable() or network != network.strip():
        raise NovaMeshError(
            Code.BAD_CONFIG,
            f"the pool's name is {network!r}, with characters that cannot be seen",
            "name it in letters, digits, signs and single spaces",
        )
    size = len(network.encode())
    if size > NETWORK_BYTES_MAX:
        raise NovaMeshError(
            Code.BAD_CONFIG,
            f"the pool's name has {size} bytes, at most {NETWORK_BYTES_MAX} are allowed",
            "shorten it",
        )
