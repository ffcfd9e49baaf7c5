"""Decoders of random weights, each piece made on the device that it stays on.

A product keeps the size of what it is given, and routers choose evenly: numbers neither grow from
layer to layer nor pick the same experts, so that a step reads what a real one would.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from novamesh_engine.kernels.reference import Matrix
from novamesh_engine.models.config import ModelConfig
from novamesh_engine.models.decoder import Decoder
from novamesh_engine.models.traits import Naming
from novamesh_engine.quant.codebook import BLOCK, NF4_VALUES, NF4Matrix
from novamesh_engine.weights.load import assemble
from novamesh_engine.weights.names import Piece

SEED: Final = 20251128
_ROOT_MEAN_SQUARE: Final = math.sqrt(sum(value**2 for value in NF4_VALUES) / len(NF4_VALUES))


@dataclass(frozen=True, slots=True)
class RandomSource:
    """Pieces of the right shape and form; `packed` keeps matrices in NF4, else in bfloat16."""

    config: ModelConfig
    device: str
    packed: bool

    @property
    def naming(self) -> Naming:
        """That of profiles."""
        return self.config.traits.namings[0]

    def take(self, piece: Piece) -> Matrix:
        """A piece as the decoder holds it."""
        size = piece.shape[-1] ** -0.5
        if piece.form == "nf4":
            return self._packed(piece, size) if self.packed else self._plain(piece, size)
        if piece.form == "float16":
            return self._normal(piece, 1.0, torch.float16)
        if "norm" in piece.name and piece.name.endswith(".weight"):
            return 1 + self._normal(piece, 0.1, torch.float32)
        return self._normal(piece, 0.1 if len(piece.shape) == 1 else size, torch.float32)

    def _packed(self, piece: Piece, size: float) -> NF4Matrix:
        *rows, width = piece.shape
        packed = torch.randint(
            0, 256, (*rows, width // 2), dtype=torch.uint8, device=self.device
        )  # fmt: skip
        absmax = torch.rand((*rows, width // BLOCK), dtype=torch.float32, device=self.device)
        return NF4Matrix(packed, ((absmax + 0.5) * (size / _ROOT_MEAN_SQUARE)).half())

    def _plain(self, piece: Piece, size: float) -> Tensor:
        return self._normal(piece, size, torch.bfloat16)

    def _normal(self, piece: Piece, size: float, dtype: torch.dtype) -> Tensor:
        return torch.empty(piece.shape, dtype=dtype, device=self.device).normal_(0, size)


def build(config: ModelConfig, device: str, packed: bool = True) -> Decoder:
    """A whole decoder, layer after layer on the device."""
    torch.manual_seed(SEED)
    return assemble(RandomSource(config, device, packed), device)
