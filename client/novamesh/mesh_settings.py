"""What `[mesh]` of config.toml says: this machine's part in the mesh of its pool, node or client.

Rules: the mesh is off until somebody turns it on; a pre-shared key is in a file of its own, which
only its owner can read; other networks' bootstrap lists are nobody's default.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from novamesh import settings
from novamesh.config import Places, read_tables
from novamesh.mesh.config import MeshConfig
from novamesh.private_file import read_private
from novamesh.settings import option
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.identity import PrivateKey

_KEY_FILE_BYTES_MAX = 256
_KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class MeshSettings:
    """The keys of `[mesh]`."""

    on: bool = option(False, "take part in the pool's mesh; needs the extra p2p")
    listen: str = option(
        "/ip4/0.0.0.0/tcp/0", "libp2p addresses to listen at, separated by commas", greatest=1024
    )
    bootstrap: str = option(
        "", "whole libp2p addresses to begin with, separated by commas", greatest=8192
    )
    key_file: str = option(
        "", "file with the private pool's key, 64 hexadecimal digits", greatest=4096
    )
    mdns: bool = option(True, "find peers on the local network, and be found there")
    relay: bool = option(False, "pass streams on for peers that nobody can dial")


def load_mesh_settings(
    places: Places,
    env: Mapping[str, str] | None = None,
    flags: Mapping[str, object] | None = None,
) -> MeshSettings:
    """The settings of this machine. Raises BAD_CONFIG."""
    env = os.environ if env is None else env
    table, file = read_tables(places.config_file).get("mesh"), str(places.config_file)
    return settings.resolve(MeshSettings, "mesh", flags=flags, env=env, table=table, file=file)


def mesh_config(
    chosen: MeshSettings,
    network: str,
    key: PrivateKey,
    peers_file: Path,
    serve_socket: Path | None = None,
) -> MeshConfig:
    """What a mesh is made from.

    Args:
        chosen: The machine's settings.
        network: The pool's name.
        key: Who takes part.
        peers_file: Where known peers are kept.
        serve_socket: Where tunnels to this machine lead; None for those who only ask.

    Raises:
        NovaMeshError: BAD_CONFIG if the key file holds no key.
    """
    return MeshConfig(
        key=key,
        network=network,
        peers_file=peers_file,
        listen=_split(chosen.listen),
        bootstrap=_split(chosen.bootstrap),
        psk=_read_key(Path(chosen.key_file)) if chosen.key_file else None,
        mdns=chosen.mdns,
        serve_socket=serve_socket,
        relay=chosen.relay,
    )


def _read_key(path: Path) -> bytes:
    text = read_private(path.expanduser(), _KEY_FILE_BYTES_MAX).decode(errors="replace").strip()
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != _KEY_BYTES:
        raise NovaMeshError(
            Code.BAD_CONFIG,
            f"mesh.key_file: {path} holds no key",
            "it is one line of 64 hexadecimal digits:  openssl rand -hex 32",
        )
    return key


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
