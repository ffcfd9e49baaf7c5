"""Rotary angles: six kinds of frequencies, two of which depend on the length of the sequence.

Rules: float32, in transformers' order of operations, so that the same config gives the same angles.
A length is that of the prompt, or of the sequence so far if that is longer, so that how a prompt is
cut into chunks changes nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from novamesh_engine.models.rope import Rope
from novamesh_proto.errors import Code, NovaMeshError


@dataclass(frozen=True, slots=True)
class Rotary:
    """`frequencies` [D / 2] in radians per position; `beyond` those past the original context.

    `beyond` is longrope's; of dynamic scaling they follow from each length.
    """

    rope: Rope
    frequencies: Tensor
    beyond: Tensor | None = None

    @classmethod
    def create(cls, rope: Rope, head_dim: int, device: str = "cpu") -> Rotary:
        """The rotary embedding of a config.

        Raises: NovaMeshError (corrupt) if longrope's factors, or dynamic scaling, do not fit
        `head_dim`.
        """
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
        if rope.kind == "longrope":
            short, long = (
                1.0 / (_factors(factors, head_dim, device) * rope.theta**exponents)
                for factors in (rope.short_factors, rope.long_factors)
            )
            return cls(rope, short, long)
        if rope.kind == "dynamic" and head_dim < 4:
            raise _misfit("dynamic rotary embedding needs a head_dim of 4 or more")
        powers = rope.theta**exponents
        if rope.kind == "yarn":
            return cls(rope, _yarn(rope, powers, head_dim))
        frequencies = 1.0 / powers
        if rope.kind == "linear":
            frequencies = frequencies / rope.factor
        elif rope.kind == "llama3":
            frequencies = _llama3(rope, frequencies)
        return cls(rope, frequencies)

    def angles(self, positions: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin, each float32 [T, D / 2], with the kind's scale already multiplied in.

        positions int64 [T]; lengths int64 [T], `ForwardBatch.rope_lengths`.
        """
        rope, frequencies, scale = self.rope, self.frequencies, rope_scale(self.rope, lengths)
        extended = (lengths > rope.original).unsqueeze(1)
        if self.beyond is not None:
            frequencies = torch.where(extended, self.beyond, frequencies)
        elif rope.kind == "dynamic" and bool(extended.any()):
            frequencies = torch.where(extended, self._dynamic(lengths), frequencies)
        angles = positions.float().unsqueeze(1) * frequencies
        return angles.cos() * scale, angles.sin() * scale

    def regime(self, prompt_count: int) -> int:
        """Which keys a prompt gets: equal numbers mean equal keys for equal tokens.

        0 inside the original context, and for kinds that do not depend on the length.
        """
        if self.rope.kind not in ("longrope", "dynamic") or prompt_count <= self.rope.original:
            return 0
        return 1 if self.rope.kind == "longrope" else prompt_count

    def _dynamic(self, lengths: Tensor) -> Tensor:
        """NTK-aware scaling by length: [T, D / 2]."""
        rope, head_dim = self.rope, 2 * self.frequencies.shape[0]
        stretch = rope.factor * lengths.clamp(min=rope.original) / rope.original
        base = rope.theta * (stretch - (rope.factor - 1)) ** (head_dim / (head_dim - 2))
        steps = torch.arange(0, head_dim, 2, dtype=torch.float32, device=lengths.device)
        return 1.0 / base.unsqueeze(1) ** (steps / head_dim)


def rope_scale(rope: Rope, lengths: Tensor) -> Tensor:
    """What cosine and sine are multiplied by, float32 [T, 1]."""
    scales = torch.where(lengths > rope.original, rope.long_scale, rope.scale)
    return scales.float().unsqueeze(1)


def _factors(factors: tuple[float, ...], head_dim: int, device: str) -> Tensor:
    if len(factors) != head_dim // 2:
        raise _misfit(f"longrope has {len(factors)} factors, not {head_dim // 2}")
    return torch.tensor(factors, dtype=torch.float32, device=device)


def _misfit(what: str) -> NovaMeshError:
    return NovaMeshError(Code.CORRUPT, what, "get the model's config.json again")


def _yarn(rope: Rope, powers: Tensor, head_dim: int) -> Tensor:
    """Fast pairs keep their frequency, slow ones are interpolated, a ramp lies between."""

    def pair(rotations: float) -> float:
        """The pair that turns this often within the original context."""
        turns = rope.original / (rotations * 2 * math.pi)
        return head_dim * math.log(turns) / (2 * math.log(rope.theta))

    low, high = pair(rope.beta_fast), pair(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    high += 0.001 if low == high else 0
    steps = torch.arange(head_dim // 2, dtype=torch.float32, device=powers.device)
    kept = 1 - ((steps - low) / (high - low)).clamp(0, 1)
    return 1.0 / (rope.factor * powers) * (1 - kept) + 1.0 / powers * kept


def _llama3(rope: Rope, frequencies: Tensor) -> Tensor:
    """Llama 3.1's: long waves are stretched, short ones kept, those between interpolated."""
    waves = 2 * math.pi / frequencies
    longest = rope.original / rope.low_freq_factor
    shortest = rope.original / rope.high_freq_factor
    span = rope.high_freq_factor - rope.low_freq_factor
    smooth = (rope.original / waves - rope.low_freq_factor) / span
    between = (1 - smooth) * frequencies / rope.factor + smooth * frequencies
    stretched = torch.where(waves > longest, frequencies / rope.factor, frequencies)
    return torch.where((waves >= shortest) & (waves <= longest), between, stretched)
