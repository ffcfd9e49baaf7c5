"""Which model of the catalogue fits this machine: `novamesh models pull auto`.

The memory of the graphics card counts if torch can use it, else the machine's. Rules: of the
machine's memory a quarter is left to everything else on it; what was measured, what was chosen and
why is said in one sentence; nothing is asked.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil

from novamesh_engine.catalogue import BUILTINS, CATALOGUE, GB, CatalogueEntry, choose_entry

RAM_SHARE: Final = 0.75
# A container's limit, version 2 and version 1 of control groups.
_LIMITS: Final = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


@dataclass(frozen=True, slots=True)
class Memory:
    """What models may take, and how it was found: "24.0 GB of NVIDIA GeForce RTX 4090"."""

    usable_bytes: int
    reason: str


@dataclass(frozen=True, slots=True)
class Choice:
    """The name to pull, or the built-in model's, and why."""

    name: str
    reason: str


def measure_memory(cuda: Any) -> Memory:
    """The memory for models; `cuda` is `torch.cuda`."""
    if cuda.is_available():
        card = cuda.get_device_properties(0)
        total = int(card.total_memory)
        return Memory(total, f"{total / GB:.1f} GB of {card.name}")
    total = min([psutil.virtual_memory().total, *_container_limits()])
    usable = int(total * RAM_SHARE)
    return Memory(usable, f"{usable / GB:.1f} GB, three quarters of this machine's memory")


def choose(memory: Memory) -> Choice:
    """The first choice for so much memory."""
    entry = choose_entry(memory.usable_bytes)
    if entry is None:
        least = min(each.memory_gb for each in CATALOGUE)
        why = f"models may take {memory.reason}: the catalogue begins at {least} GB"
        return Choice(BUILTINS[0], f"{why}, so {BUILTINS[0]} it is, which is built in")
    why = f"models may take {memory.reason}: {entry.name} is the first choice from"
    return Choice(entry.name, f"{why} {entry.memory_gb} GB on ({_describe(entry)})")


def _describe(entry: CatalogueEntry) -> str:
    counts = f"{entry.active_parameters / 1e9:.1f}B of {entry.parameters / 1e9:.1f}B parameters"
    size = f"{entry.profile_bytes / GB:.1f} GB"
    return f"{counts} active, {size}, {entry.max_context} tokens of context, {entry.licence}"


def _container_limits() -> list[int]:
    found = []
    for path in _LIMITS:
        with contextlib.suppress(OSError, ValueError):  # "max" is no number: no limit
            found.append(int(path.read_text()))
    return found
