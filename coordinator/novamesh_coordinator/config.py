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
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import platformdirs

from novamesh_proto.broker import Broker, read_broker
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.join_code import ADDRESSES_MAX

HOME_VARIABLE: Final = "NOVAMESH_HOME"
PREFIX: Final = "NOVAMESH_COORDINATOR_"
DEFAULT_LISTEN: Final = "127.0.0.1:7700"
DEFAULT_HTTP: Final = "127.0.0.1:7701"
DEFAULT_BROKER_LISTEN: Final = "127.0.0.1:1883"
LOG_FORMATS: Final = ("text", "json")
NETWORK_BYTES_MAX: Final = 64
POSTGRES: Final = "postgresql+psycopg"
PASSWORD_BYTES_MAX: Final = 1024
_ADDRESS: Final = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):(?P<port>[0-9]{1,5})")


@dataclass(frozen=True, slots=True)
class CoordinatorConfig:
    """Everything a coordinator process is set to."""

    network: str = ""  # name of the pool, 1 to 64 bytes; set by init
    listen: str = DEFAULT_LISTEN  # HOST:PORT of the gRPC service, port 0 = any free one
    http: str = DEFAULT_HTTP  # HOST:PORT of /metrics and /healthz; empty = none
    address: str = ""  # HOST:PORT that members dial, where it differs from listen; 1 to 4, commas
    open: bool = False  # whether anybody may join without an invite
    rpcs_max: int = 4096  # calls at the same time, 16 to 65536; each attached node is one
    requests_per_s: int = 100  # of one member, of an address twice as many, 1 to 100000
    mqtt: str = ""  # mqtts://USER@HOST:PORT of the broker that nodes are found by; empty = none
    mqtt_password_file: str = ""  # a file with the broker's password
    mqtt_ca: str = ""  # a PEM file of authorities to trust instead of the system's
    embedded_broker: bool = False  # run a small broker, open to whoever reaches it
    broker_listen: str = DEFAULT_BROKER_LISTEN  # HOST:PORT of the small broker
    log_format: str = "text"  # text for people, json for programs
    database: str = ""  # postgresql+psycopg://USER@HOST/NAME; empty = the file in the folder
    database_password_file: str = ""  # a file whose first line is its password


@dataclass(frozen=True, slots=True)
class PostgresUrl:
    """A PostgreSQL database: its URL without a password, and the password apart."""

    url: str
    password: str = field(default="", repr=False)


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
            values[name] = _convert(name, value, f"--{name.replace('_', '-')}")
    config = CoordinatorConfig(**values)
    _check(config)
    return config


def find_database(folder: Folder, config: CoordinatorConfig) -> Path | PostgresUrl:
    """Where the log is: the file in the folder, unless a server is named.

    Raises:
        NovaMeshError: BAD_CONFIG if the file of its password cannot be read.
    """
    if not config.database:
        return folder.database
    if not config.database_password_file:
        return PostgresUrl(config.database)
    path = Path(config.database_password_file)
    try:
        with path.open(encoding="utf-8") as file:
            password = file.readline(PASSWORD_BYTES_MAX).rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise NovaMeshError(
            Code.BAD_CONFIG,
            f"cannot read the database's password in {path}: {reason}",
            "name a file that this user may read: --database-password-file FILE",
        ) from None
    return PostgresUrl(config.database, password)


def find_broker(config: CoordinatorConfig) -> Broker | None:
    """The broker that nodes are found by: the small one here, or the one that is named.

    Raises:
        NovaMeshError: BAD_CONFIG.
    """
    if not config.embedded_broker:
        return read_broker(config.mqtt, config.mqtt_password_file, config.mqtt_ca)
    host, port = split_address(config.broker_listen, "broker_listen")
    if config.mqtt or not port:
        problem = "another broker is named" if config.mqtt else "its port must be known"
        raise NovaMeshError(
            Code.BAD_CONFIG, f"embedded_broker: {problem}", "--broker-listen HOST:PORT, no --mqtt"
        )
    if is_wildcard(config.broker_listen):
        host = "::1" if host.startswith("[") else "127.0.0.1"
    return Broker(host.strip("[]"), port, tls=False)


def write_config(config: CoordinatorConfig) -> str:
    """The file that `init` writes: what differs from the defaults."""
    lines = ["# What this pool is set to. Every key: docs/cli.md, Settings of a coordinator.\n"]
    for option in fields(CoordinatorConfig):
        value = getattr(config, option.name)
        if value != option.default:
            # Strings that _check lets pass, numbers and truths are written alike in JSON and TOML.
            lines.append(f"{option.name} = {json.dumps(value, ensure_ascii=False)}\n")
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


def check_dialled(addresses: str, name: str) -> None:
    """Refuse what nobody can dial; one address, or several with commas between.

    Raises:
        NovaMeshError: BAD_CONFIG.
    """
    each = addresses.split(",")
    if len(each) > ADDRESSES_MAX:
        problem = f"{name} names {len(each)} addresses, at most {ADDRESSES_MAX} are allowed"
        raise NovaMeshError(Code.BAD_CONFIG, problem, "name one for each coordinator")
    for address in each:
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
    known = {option.name: type(option.default) for option in fields(CoordinatorConfig)}
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
    find_broker(config)
    if config.address:
        check_dialled(config.address, "address")
    _check_database(config)
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


def _check_database(config: CoordinatorConfig) -> None:
    """A URL of a kind that we know, and no secret in it: it is seen in lists of processes."""
    if not config.database:
        return
    form = f"such as {POSTGRES}://novamesh@db.example.org/novamesh"
    try:
        url = urlsplit(config.database)
        secret = url.password is not None or "password" in parse_qs(url.query)
        whole = url.scheme == POSTGRES and len(url.path) > 1 and (url.port is None or url.port)
    except ValueError:
        secret, whole = False, False
    if secret:
        raise NovaMeshError(
            Code.BAD_CONFIG,
            "the URL of the database has a password in it",
            "take it out, and name a file with it: --database-password-file FILE",
        )
    if not whole:
        raise NovaMeshError(Code.BAD_CONFIG, "database is no URL of a PostgreSQL database", form)


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
