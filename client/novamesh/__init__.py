"""The front door of novamesh: `from novamesh import Client`.

The names below are loaded when they are first asked for: the command line imports this package too,
and its `--help` must not wait for gRPC.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from novamesh.asked import Asked
    from novamesh.client import Client, Run
    from novamesh.completion import Completion, Piece
    from novamesh.config import ClientSettings, Config, Pool, load_config
    from novamesh.receipts import verify_file
    from novamesh_proto.attestation import Finding
    from novamesh_proto.errors import Code, NovaMeshError, PeerError
    from novamesh_proto.evidence import VerifiedReceipt
    from novamesh_proto.messages import ChatMessage, FinishReason, JobState, JobView, PoolModel

__all__ = [
    "Asked",
    "ChatMessage",
    "Client",
    "ClientSettings",
    "Code",
    "Completion",
    "Config",
    "Finding",
    "FinishReason",
    "JobState",
    "JobView",
    "NovaMeshError",
    "PeerError",
    "Piece",
    "Pool",
    "PoolModel",
    "Run",
    "VerifiedReceipt",
    "load_config",
    "verify_file",
]

_HOMES: Final = {
    "novamesh.asked": ("Asked",),
    "novamesh.client": ("Client", "Run"),
    "novamesh.completion": ("Completion", "Piece"),
    "novamesh.config": ("ClientSettings", "Config", "Pool", "load_config"),
    "novamesh.receipts": ("verify_file",),
    "novamesh_proto.attestation": ("Finding",),
    "novamesh_proto.errors": ("Code", "NovaMeshError", "PeerError"),
    "novamesh_proto.evidence": ("VerifiedReceipt",),
    "novamesh_proto.messages": (
        "ChatMessage",
        "FinishReason",
        "JobState",
        "JobView",
        "PoolModel",
    ),
}


def __getattr__(name: str) -> object:
    """One of the public names, PEP 562."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(home), name)
    raise AttributeError(f"module 'novamesh' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, loaded or not."""
    return sorted({*globals(), *__all__})
