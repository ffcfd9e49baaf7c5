"""Chooses once which kernels a device gets; the only place that does.

Rules: `select` never fails: what cannot be used is left out, and `describe` says why. The result of
looking is kept for the life of the process, as a library cannot be unloaded.
"""

from __future__ import annotations

from functools import cache

import novamesh_engine
from novamesh_engine.kernels import reference
from novamesh_engine.kernels.native import UnusableLibraryError, load_kernels
from novamesh_engine.kernels.reference import Kernels

__all__ = ["Kernels", "describe", "select"]


def select(device: str = "cpu") -> Kernels:
    """The fastest kernels that this machine has for a device."""
    return _look()[0] if device == "cpu" else reference.KERNELS


def describe(device: str = "cpu") -> str:
    """One line for doctor: which kernels a device gets, and why not faster ones."""
    name, why = select(device).name, _look()[1]
    return f"{name} (no native kernels: {why})" if why and device == "cpu" else name


@cache
def _look() -> tuple[Kernels, str]:
    """The CPU's kernels, and why they are not native if they are not."""
    try:
        return load_kernels(list(novamesh_engine.__path__)), ""
    except UnusableLibraryError as error:
        return reference.KERNELS, str(error)
