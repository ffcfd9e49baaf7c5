"""Where a member's files are, which pool it belongs to, and what a client is set to.

One file, config.toml, a table a part. Rules: NOVAMESH_HOME overrides every place; flag > env
NOVAMESH_* > file > default; unknown tables and keys are errors. The `[pool]` table is written by
`novamesh pool join` and read by client and node; a part reads its own table with
`settings.resolve`. Key files are in `keys`.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import platformdirs

from novamesh import settings
from novamesh.private_file import write_private
from novamesh.settings import option
from novamesh.toml_edit import remove_table, set_value
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.identity import format_node_id, parse_node_id
from novamesh_proto.limits import JOB_TIMEOUT_MS_MAX
from novamesh_proto.messages import JoinCode, NodeId

HOME_VARIABLE: Final = "NOVAMESH_HOME"
TABLES: Final = ("client", "coordinator", "engine", "gateway", "mesh", "node", "pool")
_FILE_BYTES_MAX: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Places:
    """Folders of this member, and the files in them that several parts know."""

    config: Path
    data: Path
    cache: Path
    runtime: Path

    @property
    def config_file(self) -> Path:
        """config.toml."""
        return self.config / "config.toml"

    @property
    def client_key(self) -> Path:
        """The client's identity."""
        return self.data / "client.key"

    @property
    def node_key(self) -> Path:
        """The node's identity."""
        return self.data / "node.key"

    @property
    def receipts(self) -> Path:
        """One file a receipt."""
        return self.data / "receipts"

    @property
    def jobs(self) -> Path:
        """Keys of jobs under way, so that a crashed client can resume."""
        return self.data / "jobs"

    @property
    def node(self) -> Path:
        """The node's own files."""
        return self.data / "node"

    @property
    def coordinator(self) -> Path:
        """The coordinator's own files."""
        return self.data / "coordinator"

    @property
    def models(self) -> Path:
        """The shelf: profile folders on this machine."""
        return self.cache / "models"

    @property
    def kernels(self) -> Path:
        """What was measured of the kernels of this machine's devices."""
        return self.cache / "kernels"

    @property
    def node_socket(self) -> Path:
        """Where the node's daemon and its commands meet; mode 0600."""
        return self.runtime / "node.sock"


def find_places(home: Path | None = None, env: Mapping[str, str] | None = None) -> Places:
    """The places under `home`, else under NOVAMESH_HOME, else the platform's usual ones.

    Raises:
        NovaMeshError: BAD_CONFIG if the folder is that of ~somebody whom nobody knows.
    """
    env = os.environ if env is None else env
    if home is None and env.get(HOME_VARIABLE):
        home = Path(env[HOME_VARIABLE])
    if home is not None:
        try:
            home = home.expanduser().absolute()
        except RuntimeError:
            raise NovaMeshError(
                Code.BAD_CONFIG, f"nobody on this machine has the home folder {home.parts[0]!r}",
                f"name a folder with --home or {HOME_VARIABLE}",
            ) from None  # fmt: skip
        return Places(config=home, data=home, cache=home / "cache", runtime=home / "run")
    data = platformdirs.user_data_path("novamesh", appauthor=False)
    # Without a runtime folder of the session the socket lives in ours, never in a shared /tmp.
    session = env.get("XDG_RUNTIME_DIR")
    return Places(
        config=platformdirs.user_config_path("novamesh", appauthor=False),
        data=data,
        cache=platformdirs.user_cache_path("novamesh", appauthor=False),
        runtime=Path(session) / "novamesh" if session else data / "run",
    )


@dataclass(frozen=True, slots=True)
class Pool:
    """The pool a member belongs to, as `[pool]` says it."""

    address: str = option(
        "", "host:port of the coordinator, or up to 4, commas between", greatest=255
    )
    coordinator: str = option("", "PeerId of the coordinator: the pin", greatest=64)
    network: str = option("", "name of the pool", greatest=64)
    invite: str = option("", "invite of the join code, hexadecimal", greatest=128)

    @property
    def coordinator_id(self) -> NodeId:
        """The pin. Raises BAD_KEY if the text is no PeerId."""
        return parse_node_id(self.coordinator)

    @property
    def invite_bytes(self) -> bytes:
        """The invite as it travels. Raises BAD_CONFIG."""
        try:
            return bytes.fromhex(self.invite)
        except ValueError:
            raise NovaMeshError(
                Code.BAD_CONFIG, "pool.invite is not hexadecimal", "novamesh pool join CODE"
            ) from None

    @staticmethod
    def from_join_code(code: JoinCode) -> Pool:
        """What a join code says."""
        coordinator = format_node_id(code.coordinator)
        return Pool(code.address, coordinator, code.network, code.invite.hex())


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """What a client is set to."""

    deadline_s: float = option(
        120.0,
        "a job must end within this",
        unit="seconds",
        least=1,
        greatest=JOB_TIMEOUT_MS_MAX / 1000,
    )
    connect_timeout_s: float = option(
        5.0, "the coordinator must answer within this", unit="seconds", least=0.1, greatest=60
    )
    max_tokens: int = option(
        256, "completion tokens at most where a call does not say", least=1, greatest=1_048_576
    )
    retries: int = option(
        3,
        "tries where something failed that can heal; a full pool is asked until the deadline",
        least=1,
        greatest=10,
    )
    direct: bool = option(True, "take answers from nodes themselves where they can be reached")
    nodes: str = option(
        "", "nodes to ask without a coordinator: PEERID@HOST:PORT, commas between", greatest=8192
    )
    mqtt: str = option(
        "", "mqtts://USER@HOST:PORT of the broker to find nodes by; empty = none", greatest=512
    )
    mqtt_password_file: str = option("", "file with the broker's password", greatest=4096)
    mqtt_ca: str = option(
        "", "PEM file of authorities to trust instead of the system's", greatest=4096
    )


@dataclass(frozen=True, slots=True)
class Config:
    """Everything a client process is set to."""

    places: Places
    pool: Pool | None
    client: ClientSettings

    def require_pool(self) -> Pool:
        """The pool.

        Raises:
            NovaMeshError: BAD_CONFIG if this machine has not joined any.
        """
        if self.pool is None:
            raise NovaMeshError(
                Code.BAD_CONFIG,
                "this machine has not joined a pool",
                "novamesh pool join CODE    or try it all on this machine:  novamesh demo",
            )
        return self.pool


def load_config(
    home: Path | None = None,
    env: Mapping[str, str] | None = None,
    flags: Mapping[str, object] | None = None,
) -> Config:
    """The configuration of a client process; `flags` are keys of `ClientSettings`.

    Raises:
        NovaMeshError: BAD_CONFIG, naming file and key.
    """
    env = os.environ if env is None else env
    places = find_places(home, env)
    tables = read_tables(places.config_file)
    file = str(places.config_file)
    client = settings.resolve(
        ClientSettings, "client", flags=flags, env=env, table=tables.get("client"), file=file
    )
    return Config(places, load_pool(places, env, tables), client)


def load_pool(
    places: Places,
    env: Mapping[str, str] | None = None,
    tables: Mapping[str, Mapping[str, Any]] | None = None,
) -> Pool | None:
    """The pool of `[pool]` and NOVAMESH_POOL_*; None if there is none.

    Raises:
        NovaMeshError: BAD_CONFIG if it is there but not whole, BAD_KEY if its pin is no PeerId.
    """
    env = os.environ if env is None else env
    tables = read_tables(places.config_file) if tables is None else tables
    file = str(places.config_file)
    pool = settings.resolve(Pool, "pool", env=env, table=tables.get("pool"), file=file)
    if pool == Pool():
        return None
    missing = [key for key in ("address", "coordinator", "network") if not getattr(pool, key)]
    if missing:
        raise NovaMeshError(
            Code.BAD_CONFIG,
            f"[pool] in {file} lacks {', '.join(missing)}",
            "novamesh pool join CODE    writes it whole",
        )
    parse_node_id(pool.coordinator)
    return pool


def save_pool(places: Places, pool: Pool) -> None:
    """Write `[pool]`; the rest of the file stays as it is.

    Raises:
        NovaMeshError: BAD_CONFIG if the file is damaged, STORAGE.
    """
    text = _read_text(places.config_file)
    for key in settings.describe(Pool):
        text = set_value(text, "pool", key, getattr(pool, key))
    write_private(places.config_file, text.encode())


def forget_pool(places: Places) -> bool:
    """Remove `[pool]`; whether there was one.

    Raises:
        NovaMeshError: BAD_CONFIG if the file is damaged, STORAGE.
    """
    if "pool" not in read_tables(places.config_file):
        return False
    text = remove_table(_read_text(places.config_file), "pool")
    write_private(places.config_file, text.encode())
    return True


def save_setting(places: Places, section: str, key: str, value: settings.Value) -> None:
    """Write one setting; the rest of the file stays as it is.

    Raises:
        NovaMeshError: BAD_CONFIG if the file is damaged, STORAGE.
    """
    text = set_value(_read_text(places.config_file), section, key, value)
    write_private(places.config_file, text.encode())


def read_tables(file: Path) -> dict[str, dict[str, Any]]:
    """The tables of config.toml by name; none if there is no file.

    Raises:
        NovaMeshError: BAD_CONFIG for damaged TOML, an unknown table, or a key outside a table.
    """
    try:
        tables = tomllib.loads(_read_text(file))
    except tomllib.TOMLDecodeError as error:
        raise NovaMeshError(
            Code.BAD_CONFIG, f"{file} is not TOML: {error}", "mend that line, or move the file away"
        ) from None
    for name, table in tables.items():
        if name not in TABLES or not isinstance(table, dict):
            raise settings.unknown(name, [f"[{known}]" for known in TABLES], str(file))
    return tables


def _read_text(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            data = opened.read(_FILE_BYTES_MAX + 1)
        if len(data) > _FILE_BYTES_MAX:
            raise NovaMeshError(Code.BAD_CONFIG, f"{file} has more than {_FILE_BYTES_MAX} bytes")
        return data.decode()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise NovaMeshError(Code.BAD_CONFIG, f"cannot read {file}: {error}") from error
