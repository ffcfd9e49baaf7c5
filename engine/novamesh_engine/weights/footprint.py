"""How many bytes a model takes, by what can lie in different places: from its shape alone.

Rules: sizes are those of an NF4 profile, in memory as on the disk; no tensor is read. This module
does not import torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from novamesh_engine.models.config import ModelConfig
from novamesh_engine.weights.names import Piece, layer_pieces, outer_pieces

_BLOCK: Final = 64  # weights that share a scale; `quant.codebook` has it too, and starts torch
_FLOAT_BYTES: Final = {"float16": 2, "float32": 4}
_KV_BYTES: Final = {"fp32": 4, "bf16": 2, "int8": 1}
_SCALE_BYTES: Final = 4  # of the int8 elements of one head


@dataclass(frozen=True, slots=True)
class Footprint:
    """A model's sizes in bytes, as an NF4 profile keeps it, by what can lie in different places."""

    embedding: int  # of which a step reads one row a token; 0 where it is the head, too
    core: int  # all else but routed experts: every step reads it whole
    expert: int  # one routed expert of one layer
    sparse_layers: int  # those with routed experts
    experts: int  # in each of them
    experts_per_token: int
    kv_heads: int  # of all layers, of keys and values together
    head_dim: int  # elements of one of them

    @classmethod
    def of(cls, config: ModelConfig) -> Footprint:
        """The sizes of a model whose head_dim is settled (`load.settle_head_dim`)."""
        naming, dense = config.traits.namings[0], config.dense_layers
        outer = {role: _stored(piece) for role, piece in outer_pieces(config).items()}
        embedding = 0 if config.tie_embeddings else outer.pop("embedding")
        core, experts = sum(outer.values()), 0
        sparse = [index for index in range(config.layers) if index not in dense]
        for alike in (sparse, sorted(dense)):
            pieces = layer_pieces(config, naming, alike[0]) if alike else {}
            sizes = {role: _stored(piece) for role, piece in pieces.items()}
            if "router" in sizes:
                experts = sizes.pop("gate_up") + sizes.pop("down")
            core += len(alike) * sum(sizes.values())
        return cls(
            embedding, core, experts // config.experts, len(sparse), config.experts,
            config.experts_per_token, 2 * config.layers * config.kv_heads, config.head_dim,
        )  # fmt: skip

    @property
    def expert_row(self) -> int:
        """Bytes of one expert in every layer that has experts."""
        return self.sparse_layers * self.expert

    @property
    def total(self) -> int:
        """Bytes of the whole model."""
        return self.embedding + self.core + self.experts * self.expert_row

    @property
    def step(self) -> int:
        """Bytes that one token's decode step reads."""
        return self.core + self.experts_per_token * self.expert_row

    def slot(self, kv_dtype: str) -> int:
        """Bytes of one token's keys and values (`kv_cache.slot_bytes`), scales included."""
        scale = _SCALE_BYTES if kv_dtype == "int8" else 0
        return self.kv_heads * (self.head_dim * _KV_BYTES[kv_dtype] + scale)


def _stored(piece: Piece) -> int:
    """Bytes of a piece in a profile."""
    *rows, width = piece.shape
    if piece.form == "nf4":
        return math.prod(rows) * (width // 2 + 2 * (width // _BLOCK))
    return math.prod(piece.shape) * _FLOAT_BYTES[piece.form]
