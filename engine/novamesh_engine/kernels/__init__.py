"""Chooses once which kernels a device gets; the only place that does.

Rules: `select` never fails: what cannot be used is left out and `describe` says why.
"""

from __future__ import annotations

from novamesh_engine.kernels.reference import KERNELS, Kernels

__all__ = ["Kernels", "describe", "select"]


def select(device: str = "cpu") -> Kernels:
    """The fastest kernels that this machine has for a device."""
    del device
    return KERNELS


def describe(device: str = "cpu") -> str:
    """One line for doctor: which kernels a device gets, and why not faster ones."""
    return select(device).name
