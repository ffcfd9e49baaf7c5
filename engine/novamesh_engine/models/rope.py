"""How a model turns positions into angles, read from its config: six kinds of rotary embedding.

The kinds and their defaults are those of transformers' `modeling_rope_utils` (v5), read from the
old `rope_scaling` and the new `rope_parameters` alike. Rules: a kind, or a field of one, that is
not known here is refused by name. `rotary` computes; this module does not import torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from novamesh_engine.models.fields import Fields

FACTORS_MAX: Final = 1024
CONTEXT_MAX: Final = 1 << 24

_ORIGINAL: Final = "original_max_position_embeddings"
_COMMON: Final = frozenset({"rope_type", "type", "rope_theta", "partial_rotary_factor"})
_KNOWN: Final[dict[str, frozenset[str]]] = {
    "default": frozenset(),
    "linear": frozenset({"factor"}),
    "dynamic": frozenset({"factor"}),
    "yarn": frozenset({
        "factor", _ORIGINAL, "attention_factor", "beta_fast", "beta_slow", "mscale",
        "mscale_all_dim", "truncate",
    }),
    "longrope": frozenset({
        "factor", _ORIGINAL, "attention_factor", "short_factor", "long_factor",
    }),
    "llama3": frozenset({"factor", _ORIGINAL, "low_freq_factor", "high_freq_factor"}),
}  # fmt: skip
_MSCALES: Final = frozenset({"short_mscale", "long_mscale"})


@dataclass(frozen=True, slots=True)
class Rope:
    """One kind with its numbers; what a kind does not use keeps its default.

    `scale` multiplies cosine and sine, `long_scale` does beyond the original context (longrope).
    """

    kind: str
    theta: float
    factor: float = 1.0
    original: int = 0  # tokens of the context before it was extended
    scale: float = 1.0
    long_scale: float = 1.0
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0

    def context(self, stated: int) -> int:
        """The longest context in tokens, given max_position_embeddings.

        YaRN and dynamic scaling reach `factor` times the original; the other kinds' configs state
        the extended length.
        """
        if self.kind in ("yarn", "dynamic"):
            return min(CONTEXT_MAX, max(stated, int(self.factor * self.original)))
        return stated


def read_rope(fields: Fields, theta: float, stated: int, mscales: bool) -> Rope:
    """The rotary embedding of a config.

    `theta` is the family's default, `stated` max_position_embeddings, `mscales` whether the family
    has Phi-3.5-MoE's own scales, which are then required of every kind but the default.

    Raises: NovaMeshError (unsupported, corrupt) naming the field.
    """
    if fields.raw.get("partial_rotary_factor", 1.0) not in (1.0, None):
        raise fields.unsupported("partial_rotary_factor", fields.raw["partial_rotary_factor"], "1")
    theta = fields.number("rope_theta", 1.0, 1e12, theta)
    name = "rope_scaling" if fields.raw.get("rope_scaling") else "rope_parameters"
    inner = fields.inside(name)
    if inner is None:
        return Rope("default", theta)
    kind = inner.raw.get("rope_type", inner.raw.get("type", "default"))
    wanted = ("default", "longrope") if mscales else tuple(_KNOWN)
    if kind not in wanted:
        raise fields.unsupported(f"{name}.rope_type", kind, f"one of {', '.join(wanted)}")
    if inner.raw.get("partial_rotary_factor", 1.0) not in (1.0, None):
        raise inner.unsupported("partial_rotary_factor", inner.raw["partial_rotary_factor"], "1")
    own = _MSCALES if mscales and kind == "longrope" else frozenset()
    inner.only(_COMMON | _KNOWN[kind] | own)
    theta = inner.number("rope_theta", 1.0, 1e12, theta)
    holder = fields if fields.has(_ORIGINAL) else inner  # transformers reads them in this order
    original = holder.whole((_ORIGINAL,), 1, CONTEXT_MAX, stated)
    return _READERS[kind](inner, Rope(kind, theta, original=original), stated, mscales)


def _default(inner: Fields, rope: Rope, stated: int, mscales: bool) -> Rope:
    return Rope("default", rope.theta)


def _linear(inner: Fields, rope: Rope, stated: int, mscales: bool) -> Rope:
    return Rope("linear", rope.theta, _factor(inner))


def _dynamic(inner: Fields, rope: Rope, stated: int, mscales: bool) -> Rope:
    return Rope("dynamic", rope.theta, _factor(inner), stated)


def _yarn(inner: Fields, rope: Rope, stated: int, mscales: bool) -> Rope:
    """YaRN (Peng et al. 2023, arXiv:2309.00071)."""
    factor = _factor(inner, stated / rope.original)
    wide, all_dims = (_optional(inner, name) for name in ("mscale", "mscale_all_dim"))
    scale = _optional(inner, "attention_factor")
    if scale is None:
        both = wide is not None and all_dims is not None
        scale = _mscale(factor, wide) / _mscale(factor, all_dims) if both else _mscale(factor, 1.0)
    return Rope(
        "yarn", rope.theta, factor, rope.original, scale, scale,
        beta_fast=inner.number("beta_fast", 0.0, 1e6, 32.0),
        beta_slow=inner.number("beta_slow", 0.0, 1e6, 1.0),
        truncate=inner.flag("truncate", True),
    )  # fmt: skip


def _longrope(inner: Fields, rope: Rope, stated: int, mscales: bool) -> Rope:
    """LongRoPE (Ding et al. 2024, arXiv:2402.13753)."""
    factor = _factor(inner, max(1.0, stated / rope.original))
    scale = _optional(inner, "attention_factor")
    if scale is None:
        grown = factor > 1.0 and rope.original > 1
        scale = math.sqrt(1 + math.log(factor) / math.log(rope.original)) if grown else 1.0
    scales = (scale, scale)
    if mscales:
        scales = inner.number("short_mscale", 0, 1e3), inner.number("long_mscale", 0, 1e3)
    return Rope(
        "longrope", rope.theta, factor, rope.original, *scales,
        short_factors=inner.numbers("short_factor", FACTORS_MAX),
        long_factors=inner.numbers("long_factor", FACTORS_MAX),
    )  # fmt: skip


def _llama3(inner: Fields, rope: Rope, stated: int, mscales: bool) -> Rope:
    low = inner.number("low_freq_factor", 0.0, 1e6)
    high = inner.number("high_freq_factor", low, 1e6)
    return Rope(
        "llama3", rope.theta, _factor(inner), rope.original,
        low_freq_factor=low, high_freq_factor=high,
    )  # fmt: skip


_READERS: Final = {
    "default": _default, "linear": _linear, "dynamic": _dynamic, "yarn": _yarn,
    "longrope": _longrope, "llama3": _llama3,
}  # fmt: skip


def _factor(inner: Fields, default: float | None = None) -> float:
    return inner.number("factor", 0.0, 1e6, default)


def _optional(inner: Fields, name: str) -> float | None:
    return inner.number(name, 0.0, 1e6) if inner.has(name) else None


def _mscale(factor: float, by: float | None) -> float:
    return 0.1 * (by or 1.0) * math.log(factor) + 1.0 if factor > 1 else 1.0
