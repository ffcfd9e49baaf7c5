"""NF4: sixteen values, two weights a byte, one scale for 64 weights along a row.

The layout is bitsandbytes': element 2i of a row is the high nibble of byte i, 2i + 1 the low one,
and a weight is `codebook[nibble] * absmax`. We keep absmax in float16. Rows are a multiple of 64
long, so that no block crosses a row. This module dequantizes; bitsandbytes quantizes (`convert`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

BLOCK: Final = 64

# QLoRA (Dettmers et al. 2023), appendix E; the values of bitsandbytes' create_normal_map.
NF4_VALUES: Final[tuple[float, ...]] = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip

_CODES: Final = torch.tensor(NF4_VALUES, dtype=torch.float32)
# Byte -> its two weights; seen as one int64, so that one copied word decodes a byte.
_PAIRS: Final = torch.stack((_CODES.repeat_interleave(16), _CODES.repeat(16)), dim=-1).view(
    torch.int64
)


@dataclass(frozen=True, slots=True)
class NF4Matrix:
    """A matrix [N, K], or a stack of them [E, N, K], packed.

    packed  uint8 [..., N, K / 2]
    absmax  float16 [..., N, K / 64]
    """

    packed: Tensor
    absmax: Tensor

    def __getitem__(self, index: int) -> NF4Matrix:
        """One matrix of a stack, a view."""
        return NF4Matrix(self.packed[index], self.absmax[index])

    def rows(self, start: int, stop: int) -> NF4Matrix:
        """Rows [start, stop) of a matrix, a view."""
        return NF4Matrix(self.packed[start:stop], self.absmax[start:stop])

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the dequantized form."""
        return (*self.packed.shape[:-1], self.packed.shape[-1] * 2)

    def to(self, device: str) -> NF4Matrix:
        """The same weights on another device, still packed."""
        return NF4Matrix(self.packed.to(device), self.absmax.to(device))


def dequantize(matrix: NF4Matrix) -> Tensor:
    """The float32 weights of a packed matrix; callers keep what they unpack small."""
    bytes_flat = matrix.packed.flatten().int()
    pairs = torch.index_select(_PAIRS.to(bytes_flat.device).flatten(), 0, bytes_flat)
    blocks = pairs.view(torch.float32).view(*matrix.absmax.shape, BLOCK)
    return blocks.mul_(matrix.absmax.float().unsqueeze(-1)).view(matrix.shape)
