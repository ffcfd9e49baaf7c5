"""Chooses once how an engine computes: the only place that does.

Rules: `bind` never fails for want of speed: what cannot be used is left out, and `look` says
why. The library is looked for once in the life of a process, as it cannot be unloaded.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from functools import cache
from typing import Final, Protocol

import torch
from torch import Tensor

import novamesh_engine
from novamesh_engine.kernels import library as abi
from novamesh_engine.kernels.forward import NativeForward
from novamesh_engine.kernels.native import Native, UnsuitedError
from novamesh_engine.kernels.threads import physical_cores
from novamesh_engine.models.batch import ForwardBatch, KVCache
from novamesh_engine.models.decoder import Decoder

ISA_VARIABLE: Final = "NOVAMESH_ISA"  # names an instruction set, for tests and comparisons


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

    def forward(self, batch: ForwardBatch, kv: KVCache) -> Tensor:
        """As `Decoder.forward` defines it."""
        ...


@dataclass(frozen=True, slots=True)
class ReferenceForward:
    """The definition itself, in plain torch, and why nothing faster is used."""

    decoder: Decoder
    why: str = ""
    name: str = "torch"
    precision: str = "exact"

    @property
    def threads(self) -> int:
        """Torch's own."""
        return torch.get_num_threads()

    def forward(self, batch: ForwardBatch, kv: KVCache) -> Tensor:
        """As `Decoder.forward` defines it."""
        return self.decoder.forward(batch, kv)


def bind(
    decoder: Decoder, device: str = "cpu", threads: int = 0, precision: str = "int8"
) -> Forward:
    """The fastest forward that this machine has for a decoder.

    threads 0 takes the physical cores; precision "exact" keeps float32 activations.
    """
    if device != "cpu":
        return ReferenceForward(decoder, f"no kernels of ours for {device} yet")
    try:
        native = open_native(threads, precision)
        return NativeForward(decoder, native)
    except (abi.UnusableLibraryError, UnsuitedError) as error:
        return ReferenceForward(decoder, str(error))


def open_native(threads: int = 0, precision: str = "int8", isa: str | None = None) -> Native:
    """The C++ operations by themselves, on threads of their own.

    Raises: UnusableLibraryError saying why there are none.
    """
    library = _library()
    wanted = isa or os.environ.get(ISA_VARIABLE) or None
    chosen = abi.choose_set(abi.runnable_sets(library), wanted)
    return Native(library, chosen, threads or physical_cores(), precision == "int8")


@dataclass(frozen=True, slots=True)
class Kernels:
    """What a CPU engine would use: an instruction set, or "torch" and why it is no better."""

    isa: str
    runnable: tuple[str, ...]
    why: str = ""

    @property
    def name(self) -> str:
        """native-avx512vnni, or torch."""
        return f"native-{self.isa}" if self.runnable else self.isa


def look(device: str = "cpu") -> Kernels:
    """Which kernels a device gets, without opening any."""
    if device != "cpu":
        return Kernels("torch", (), f"no kernels of ours for {device} yet")
    try:
        runnable = abi.runnable_sets(_library())
        return Kernels(abi.choose_set(runnable, os.environ.get(ISA_VARIABLE) or None), runnable)
    except abi.UnusableLibraryError as error:
        return Kernels("torch", (), str(error))


def _library() -> ctypes.CDLL:
    found = _find()
    if isinstance(found, str):
        raise abi.UnusableLibraryError(found)
    return found


@cache
def _find() -> ctypes.CDLL | str:
    """The library, or why there is none."""
    try:
        return abi.load_library(abi.find_library(list(novamesh_engine.__path__)))
    except abi.UnusableLibraryError as error:
        return str(error)
