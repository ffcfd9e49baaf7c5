"""What a device is that torch knows, and which kernels run on it: the choice is one pure function.

Rules: looking changes nothing and never raises; what is not known is 0 or False.
"""

from __future__ import annotations

import importlib.util
import shutil
import sysconfig
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

OLDEST: Final = (7, 5)  # Turing: the first with tensor cores that Triton still compiles for
AMPERE: Final = (8, 0)  # the first with bfloat16
_COMPILERS: Final = ("cc", "gcc", "clang")  # those that Triton looks for
_HEADER: Final = Path(sysconfig.get_paths()["include"]) / "Python.h"  # what it compiles needs this


@dataclass(frozen=True, slots=True)
class Card:
    """A device before anything computes on it. Bytes, and bytes a second."""

    kind: str  # torch's name of such devices: cuda (ROCm's, too), mps, xpu
    name: str = ""
    capability: tuple[int, int] = (0, 0)
    rocm: bool = False
    triton: bool = False  # can be imported
    compiler: bool = False  # Triton's launchers are compiled here, once
    processors: int = 1
    free_bytes: int = 0
    read_bytes_per_s: int = 0


@dataclass(frozen=True, slots=True)
class CardKernels:
    """triton, or torch and why; the type that tensor cores multiply in; a way to faster ones."""

    kernels: str
    compute: torch.dtype
    why: str
    hint: str = ""


def choose_for(card: Card) -> CardKernels:
    """Which kernels a card gets."""
    modern = card.rocm or card.capability >= AMPERE
    compute = torch.bfloat16 if modern else torch.float16
    if card.kind != "cuda":
        return CardKernels("torch", torch.float32, f"no kernels of ours for {card.kind} yet")
    if not card.name:
        return CardKernels("torch", torch.float32, "torch cannot open this card")
    if not card.rocm and card.capability < OLDEST:
        has, needs = (".".join(map(str, one)) for one in (card.capability, OLDEST))
        return CardKernels("torch", torch.float32, f"{card.name} has {has}, Triton needs {needs}")
    if not card.triton:
        return CardKernels("torch", torch.float32, "Triton is missing", "pip install triton")
    if not card.compiler:
        hint = "install gcc and Python's headers (python3-dev) for the faster kernels"
        return CardKernels("torch", torch.float32, "Triton needs a C compiler", hint)
    return CardKernels("triton", compute, "the best this card has")


def look_at(device: str) -> Card:
    """What torch says of a device: cuda, cuda:1, mps."""
    kind = torch.device(device).type
    found: dict[str, Any] = {
        "kind": kind,
        "triton": importlib.util.find_spec("triton") is not None,
        "compiler": any(map(shutil.which, _COMPILERS)) and _HEADER.is_file(),
    }
    if kind != "cuda":
        return Card(**found)
    try:
        index = torch.device(device).index or 0
        facts = torch.cuda.get_device_properties(index)
        free, _ = torch.cuda.mem_get_info(index)
    except (RuntimeError, AssertionError):  # it is full, lent to another, or torch is for CPUs
        return Card(**found)
    # Old versions of torch do not tell. Clocks are in kHz, and data moves on both edges.
    clock_hz = 1000 * getattr(facts, "memory_clock_rate", 0)
    return Card(
        **found,
        name=facts.name,
        capability=(facts.major, facts.minor),
        rocm=torch.version.hip is not None,
        processors=facts.multi_processor_count,
        free_bytes=free,
        read_bytes_per_s=2 * clock_hz * getattr(facts, "memory_bus_width", 0) // 8,
    )


def on_device(device: str) -> AbstractContextManager[object]:
    """Makes a device the current one: Triton launches there, events are recorded there."""
    if torch.device(device).type == "cuda":
        return torch.cuda.device(device)
    return nullcontext()
