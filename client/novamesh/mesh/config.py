"""What a mesh is set to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from novamesh_proto.identity import PrivateKey


@dataclass(frozen=True, slots=True)
class MeshConfig:
    """One machine's part in the mesh of one pool.

    Args:
        key: Who we are; the PeerId is its NodeId.
        network: The pool's name.
        peers_file: Where known peers are kept.
        listen: TCP multiaddrs; empty for those who only dial.
        bootstrap: Whole addresses, "/ip4/192.0.2.7/tcp/7710/p2p/12D3KooW…".
        psk: 32 bytes that all of a private pool's peers share.
        mdns: Find peers on the local network, and be found there.
        serve_socket: The unix socket of a node's gRPC server, which tunnels lead to.
        relay: Pass streams on for peers that nobody can dial; for public machines.
    """

    key: PrivateKey
    network: str
    peers_file: Path
    listen: tuple[str, ...] = ("/ip4/0.0.0.0/tcp/0",)
    bootstrap: tuple[str, ...] = ()
    psk: bytes | None = None
    mdns: bool = False
    serve_socket: Path | None = None
    relay: bool = False
