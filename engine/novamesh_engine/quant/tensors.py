"""Which tensors an NF4 profile holds, and which tensors of a plain checkpoint each is made of.

A plan and no bytes: whoever converts can tell sizes, order and which files are needed when, before
the first weight is here. Rules: the rows of the parts, one below the other, are the rows of the
tensor; the order of the plan is the order of the profile.
"""

from __future__ import annotations

import math
from collections.abc import Container
from dataclasses import dataclass
from typing import Final, Literal

from novamesh_engine.models.config import ModelConfig
from novamesh_engine.quant.codebook import BLOCK
from novamesh_engine.weights.names import (
    ABSMAX,
    EMBEDDING,
    HEAD,
    NORM,
    attention_name,
    expert_name,
    norm_names,
    router_name,
    stack_name,
)

Form = Literal["nf4", "float16", "float32"]
_BYTES: Final = {"float16": 2, "float32": 4}


@dataclass(frozen=True, slots=True)
class Part:
    """A tensor of the checkpoint, of any of the float types."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor as the profile's file has it: name, safetensors' element type, shape, bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int


@dataclass(frozen=True, slots=True)
class ProfileTensor:
    """A tensor of the profile in its unpacked shape, how it is kept, and its parts in order."""

    name: str
    form: Form
    shape: tuple[int, ...]
    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        assert math.prod(self.shape) == sum(math.prod(part.shape) for part in self.parts)
        assert all(part.shape[-1] == self.shape[-1] for part in self.parts) or len(self.shape) == 1

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

    Attention, experts and an untied head become NF4; the embedding becomes float16; router and
    norms stay float32. A part may be missing from `names`: whoever reads it says so.
    """
    hidden = config.hidden_size
    plan = [_kept(EMBEDDING, "float16", config.vocab_size, hidden)]
    for layer in range(config.layers):
        before_attention, before_moe = norm_names(layer)
        width = config.heads * config.head_dim
        plan += [
            _kept(before_attention, "float32", hidden),
            _qkv(config, layer),
            _kept(attention_name(layer, "o"), "nf4", hidden, width),
            _kept(before_moe, "float32", hidden),
            _kept(router_name(config, layer), "float32", config.experts, hidden),
            *_experts(config, layer),
        ]
    plan.append(_kept(NORM, "float32", hidden))
    if not config.tie_embeddings:
        plan.append(_kept(HEAD, "nf4", config.vocab_size, hidden))
    return tuple(plan)


def _kept(name: str, form: Form, *shape: int) -> ProfileTensor:
    """A tensor that has the same name and shape in the checkpoint."""
    return ProfileTensor(name, form, shape, (Part(name, shape),))


def _qkv(config: ModelConfig, layer: int) -> ProfileTensor:
    """The rows of q, k and v, one below the other."""
    heads = {"q": config.heads, "k": config.kv_heads, "v": config.kv_heads}
    parts = tuple(
        Part(attention_name(layer, key), (count * config.head_dim, config.hidden_size))
        for key, count in heads.items()
    )
    rows = sum(part.shape[0] for part in parts)
    return ProfileTensor(attention_name(layer, "qkv"), "nf4", (rows, config.hidden_size), parts)


def _experts(config: ModelConfig, layer: int) -> tuple[ProfileTensor, ProfileTensor]:
    """All experts' gate rows then up rows, [E, 2F, H], and their down rows, [E, H, F]."""
    traits, size, hidden = config.traits, config.expert_size, config.hidden_size
    gate_up, down = [], []
    for expert in range(config.experts):
        for key in (traits.gate, traits.up):
            gate_up.append(Part(expert_name(config, layer, expert, key), (size, hidden)))
        down.append(Part(expert_name(config, layer, expert, traits.down), (hidden, size)))
    return (
        ProfileTensor(
            stack_name(config, layer, "gate_up"), "nf4", (config.experts, 2 * size, hidden),
            tuple(gate_up),
        ),
        ProfileTensor(
            stack_name(config, layer, "down"), "nf4", (config.experts, hidden, size), tuple(down),
        ),
    )  # fmt: skip
