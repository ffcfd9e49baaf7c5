"""Random parts of a decoder, of any shape and form, and pages of keys and values for them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from novamesh_engine.kernels.reference import Matrix
from novamesh_engine.models.attention import Attention
from novamesh_engine.models.layers import Linear, Norm
from novamesh_engine.models.moe import Router
from novamesh_engine.quant.codebook import NF4Matrix

HIDDEN = 48  # what attention layers read: no power of 2


def random(seed: int, *shape: int) -> Tensor:
    """Normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def random_matrix(seed: int, *shape: int, form: str = "nf4") -> Matrix:
    """A matrix or stack: "nf4", "float32" or "float16", that keeps the size of what it multiplies.

    The standard deviation of NF4's values is about a half.
    """
    if form != "nf4":
        return (random(seed, *shape) * shape[-1] ** -0.5).to(getattr(torch, form))
    rng, (*rows, width) = torch.Generator().manual_seed(seed), shape
    packed = torch.randint(0, 256, (*rows, width // 2), generator=rng, dtype=torch.uint8)
    absmax = torch.rand((*rows, width // 64), generator=rng) + 0.5
    return NF4Matrix(packed, (absmax * 2 * width**-0.5).half())


def random_norm(seed: int, width: int, centred: bool = False, biased: bool = False) -> Norm:
    """A norm whose weights matter."""
    return Norm(
        1 + 0.2 * random(seed, width), random(seed + 1, width) if biased else None, 1e-5, centred
    )  # fmt: skip


def random_router(seed: int, kind: str, count: int, width: int, slots: int) -> Router:
    """A router that prefers, but not by far."""
    weight = random(seed, count, width) * 2 * width**-0.5
    return Router(weight, kind, slots, kind == "softmax", 0.1)  # type: ignore[arg-type]


def random_attention(
    seed: int,
    heads: tuple[int, int, int],
    norm: str = "",
    clip: float | None = None,
    window: int | None = None,
) -> Attention:
    """A layer of (heads, kv heads, head size) whose output projection changes nothing."""
    count, kv_count, width = heads
    norms: tuple[Norm | None, Norm | None] = (None, None)
    if norm:
        sizes = (width, width) if norm == "head" else (count * width, kv_count * width)
        norms = random_norm(seed + 1, sizes[0]), random_norm(seed + 2, sizes[1])
    rows = random_matrix(seed, (count + 2 * kv_count) * width, HIDDEN, form="float32")
    output = Linear(torch.eye(count * width))
    return Attention(0, count, kv_count, width, Linear(rows), output, *norms, clip, window)


@dataclass(frozen=True)
class RandomKV:
    """One layer's cache full of what others left there; sequences own 16 shuffled blocks each."""

    cache: tuple[Tensor, Tensor]
    scales: tuple[Tensor, Tensor] | None = None

    @classmethod
    def make(cls, dtype: torch.dtype, kv_heads: int, width: int, page: int = 8) -> RandomKV:
        """Pages for four sequences."""
        shape = (64, kv_heads, page, width)
        filled = [random(seed, *shape) for seed in (91, 92)]
        if dtype != torch.int8:
            return cls((filled[0].to(dtype), filled[1].to(dtype)))
        scales = [0.01 + 0.02 * random(seed, *shape[:3]).abs() for seed in (93, 94)]
        steps = [(values * 40).clamp(-127, 127).to(torch.int8) for values in filled]
        return cls((steps[0], steps[1]), (scales[0], scales[1]))

    @property
    def block_size(self) -> int:
        return self.cache[0].shape[2]

    def table(self, owner: int, count: int) -> list[int]:
        """The blocks of a sequence."""
        return [(owner * 16 + i) * 7 % 64 for i in range(count)]

    def copy(self) -> RandomKV:
        """The same pages elsewhere."""
        scales = self.scales and (self.scales[0].clone(), self.scales[1].clone())
        return replace(self, cache=(self.cache[0].clone(), self.cache[1].clone()), scales=scales)

    def held(self) -> list[Tensor]:
        """All that it holds, so that two can be compared."""
        return [*self.cache, *(self.scales or ())]

    def keys(self, layer: int) -> Tensor:
        return self.cache[0]

    def values(self, layer: int) -> Tensor:
        return self.cache[1]

    def key_scales(self, layer: int) -> Tensor | None:
        return None if self.scales is None else self.scales[0]

    def value_scales(self, layer: int) -> Tensor | None:
        return None if self.scales is None else self.scales[1]
