"""Chooses once how an engine computes: the only place that does.

Rules: `bind` never fails for want of speed: what cannot be used is left out, and `look` says
why. The library is looked for once in the life of a process, as it cannot be unloaded.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final, Protocol, TypeAlias

import torch
from torch import Tensor

import novamesh_engine
from novamesh_engine.kernels import library as abi
from novamesh_engine.kernels.cards import choose_for, look_at
from novamesh_engine.kernels.forward import NativeForward
from novamesh_engine.kernels.native import Native, UnsuitedError
from novamesh_engine.kernels.threads import physical_cores
from novamesh_engine.models.batch import ForwardBatch, KVCache
from novamesh_engine.models.decoder import Decoder

ISA_VARIABLE: Final = "NOVAMESH_ISA"  # names an instruction set, for tests and comparisons
_BEST: Final = "the best this CPU has"
_MISSING: Final = "install a C++ compiler and reinstall novamesh for the faster kernels"
_BROKEN: Final = "reinstall novamesh for the faster kernels"

Resident: TypeAlias = Sequence[Sequence[int]]


class Forward(Protocol):
    """Runs a step of one decoder."""

    @property
    def name(self) -> str:
        """Which kernels, for people: native-avx512vnni-int8, torch."""
        ...

    @property
    def precision(self) -> str:
        """Of activations that meet packed weights: int8 or exact."""
        ...

    @property
    def threads(self) -> int:
        """CPU threads that share a step."""
        ...

    @property
    def why(self) -> str:
        """Why nothing faster computes; empty where the fastest does."""
        ...

    def forward(self, batch: ForwardBatch, kv: KVCache) -> Tensor:
        """As `Decoder.forward` defines it."""
        ...


@dataclass(frozen=True, slots=True)
class ReferenceForward:
    """The definition itself, in plain torch, and why nothing faster is used."""

    decoder: Decoder
    why: str = ""
    device: str = "cpu"
    name: str = "torch"
    precision: str = "exact"

    @property
    def threads(self) -> int:
        """Torch's own."""
        return torch.get_num_threads()

    def forward(self, batch: ForwardBatch, kv: KVCache) -> Tensor:
        """As `Decoder.forward` defines it."""
        return self.decoder.forward(batch.to(self.device), kv)


def bind(
    decoder: Decoder,
    device: str = "cpu",
    threads: int = 0,
    precision: str = "int8",
    resident: Resident = (),
    tuning: str = "",
) -> Forward:
    """The fastest forward that this machine has for a decoder.

    threads 0 takes the physical cores; precision "exact" keeps float32 activations. `resident` are
    the experts of each layer with experts that go to the device, if not all lie there already;
    `tuning` is a folder for what was measured of its kernels, "" measures nothing.

    Raises: UnusableLibraryError if some experts stay with a CPU that has no kernels.
    """
    if device != "cpu":
        found = choose_for(card := look_at(device))
        if found.kernels == "torch":
            return ReferenceForward(decoder, found.why, device)
        # Triton is missing where a pure CPU computes, and slow to import.
        from novamesh_engine.kernels.gpu_forward import build_forward

        compute = torch.float32 if precision == "exact" else found.compute
        native = open_native(threads, precision) if resident else None
        return build_forward(decoder, device, card, compute, resident, native, tuning)
    try:
        native = open_native(threads, precision)
        return NativeForward(decoder, native)
    except abi.UnusableLibraryError as error:
        return ReferenceForward(decoder, str(error))
    except UnsuitedError as error:
        return ReferenceForward(decoder, f"C++ does not take {error}")


def open_native(threads: int = 0, precision: str = "int8", isa: str | None = None) -> Native:
    """The C++ operations by themselves, on threads of their own.

    Raises: UnusableLibraryError saying why there are none.
    """
    library = _library()
    runnable = abi.runnable_sets(library)
    chosen = _asked_for(runnable) if isa is None else abi.choose_set(runnable, isa)
    return Native(library, chosen, threads or physical_cores(), precision == "int8")


@dataclass(frozen=True, slots=True)
class Kernels:
    """What an engine would use and why: an instruction set, "triton", or "torch" and what to do."""

    isa: str
    runnable: tuple[str, ...]
    why: str
    hint: str = ""

    @property
    def name(self) -> str:
        """native-avx512vnni, triton, or torch."""
        return f"native-{self.isa}" if self.runnable else self.isa


def look(device: str = "cpu") -> Kernels:
    """Which kernels a device gets, without opening any."""
    if device != "cpu":
        found = choose_for(look_at(device))
        return Kernels(found.kernels, (), found.why, found.hint)
    try:
        runnable = abi.runnable_sets(_library())
    except abi.UnusableLibraryError as error:
        return Kernels("torch", (), str(error), _BROKEN if _path() else _MISSING)
    try:
        chosen = _asked_for(runnable)
    except abi.UnusableLibraryError as error:
        hint = f"unset {ISA_VARIABLE}, or set it to one of {', '.join(runnable)}"
        return Kernels("torch", (), str(error), hint)
    asked = os.environ.get(ISA_VARIABLE)
    return Kernels(chosen, runnable, f"{ISA_VARIABLE} asks for it" if asked else _BEST)


def _asked_for(runnable: Sequence[str]) -> str:
    """The instruction set that the environment names, or the best."""
    asked = os.environ.get(ISA_VARIABLE) or None
    try:
        return abi.choose_set(runnable, asked)
    except abi.UnusableLibraryError as error:
        raise abi.UnusableLibraryError(f"{ISA_VARIABLE} is {asked}: {error}") from error


def _path() -> Path | None:
    return abi.find_library(list(novamesh_engine.__path__))


def _library() -> ctypes.CDLL:
    found = _find()
    if isinstance(found, str):
        raise abi.UnusableLibraryError(found)
    return found


@cache
def _find() -> ctypes.CDLL | str:
    """The library, or why there is none."""
    try:
        return abi.load_library(_path())
    except abi.UnusableLibraryError as error:
        return str(error)
