"""The front door of novamesh: `from novamesh import Client`.

The names below are loaded when they are first asked for: the command line imports this package too,
and its `--help` must not wait for gRPC.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from novamesh.client import Client
    from novamesh.completion import Completion, Piece
    from novamesh_proto.errors import Code, NovaMeshError

__all__ = ["Client", "Code", "Completion", "NovaMeshError", "Piece"]

_HOMES: Final = {
    "Client": "novamesh.client",
    "Code": "novamesh_proto.errors",
    "Completion": "novamesh.completion",
    "NovaMeshError": "novamesh_proto.errors",
    "Piece": "novamesh.completion",
}


def __getattr__(name: str) -> object:
    """One of the public names, PEP 562."""
    if name not in _HOMES:
        raise AttributeError(f"module 'novamesh' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
