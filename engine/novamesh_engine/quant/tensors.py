"""Which tensors an NF4 profile holds, and which tensors of a plain checkpoint each is made of.

A plan and no bytes: whoever converts can tell sizes, order and which files are needed when, before
the first weight is here. Rules: the rows of the parts, one below the other, are the rows of the
tensor; the order of the plan is the order of the profile. Attention, experts (routed, shared and
dense) and an untied head are NF4; the embedding is float16; routers, norms and biases stay float32.
"""

from __future__ import annotations

import math
from collections.abc import Container
from dataclasses import dataclass
from typing import Final

from novamesh_engine.models.config import ModelConfig
from novamesh_engine.quant.codebook import BLOCK
from novamesh_engine.weights.names import ABSMAX, Part, Piece, find_naming, pieces

__all__ = ["Part", "ProfileTensor", "Stored", "profile_tensors"]

_BYTES: Final = {"float16": 2, "float32": 4}


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor as the profile's file has it: name, safetensors' element type, shape, bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int


@dataclass(frozen=True, slots=True)
class ProfileTensor(Piece):
    """A tensor of the profile in its unpacked shape, how it is kept, and its parts in order."""

    @property
    def stored(self) -> tuple[Stored, ...]:
        """What the file holds of it: itself, or packed weights and their scales."""
        count = math.prod(self.shape)
        if self.form != "nf4":
            dtype = "F16" if self.form == "float16" else "F32"
            return (Stored(self.name, dtype, self.shape, count * _BYTES[self.form]),)
        *rows, width = self.shape
        scales = count // BLOCK
        return (
            Stored(self.name, "U8", (*rows, width // 2), count // 2),
            Stored(self.name + ABSMAX, "F16", (*rows, width // BLOCK), scales * 2),
        )


def profile_tensors(config: ModelConfig, names: Container[str]) -> tuple[ProfileTensor, ...]:
    """The plan for a checkpoint of this shape; `names` are the tensors that it says it has.

    They tell how it names its experts. A part may be missing from `names`: whoever reads it says
    so.
    """
    found = pieces(config, find_naming(config, names))
    return tuple(ProfileTensor(each.name, each.form, each.shape, each.parts) for each in found)
