"""The one MoE decoder: embedding, layers of attention and experts, head.

Rules: hidden states and logits are float32; the batch is only read; the only state written is the
KV cache that the caller passes. It samples nothing and knows no request.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from novamesh_engine.models.attention import Attention
from novamesh_engine.models.batch import ForwardBatch, KVCache
from novamesh_engine.models.config import ModelConfig
from novamesh_engine.models.layers import Linear, Norm
from novamesh_engine.models.moe import MLP, MoE
from novamesh_engine.models.rotary import Rotary


@dataclass(frozen=True, slots=True)
class Layer:
    """Pre-normalised attention, then pre-normalised experts, each added to its input."""

    attention_norm: Norm
    attention: Attention
    mlp_norm: Norm
    mlp: MoE | MLP

    def __call__(
        self, x: Tensor, angles: tuple[Tensor, Tensor], batch: ForwardBatch, kv: KVCache
    ) -> Tensor:
        """x float32 [T, H] to float32 [T, H]."""
        x = x + self.attention(self.attention_norm(x), angles, batch, kv)
        return x + self.mlp(self.mlp_norm(x))


@dataclass(frozen=True, slots=True)
class Decoder:
    """A whole model, and its definition of forward. `embedding` [vocab, H] is of any float type."""

    config: ModelConfig
    embedding: Tensor
    rotary: Rotary
    layers: tuple[Layer, ...]
    norm: Norm
    head: Linear

    @torch.inference_mode()
    def forward(self, batch: ForwardBatch, kv: KVCache) -> Tensor:
        """Logits float32 [R, vocab] of batch.logit_rows; writes the new tokens' K and V."""
        x = torch.nn.functional.embedding(batch.token_ids, self.embedding).float()
        angles = self.rotary.angles(batch.positions, batch.rope_lengths)
        for layer in self.layers:
            x = layer(x, angles, batch, kv)
        return self.head(self.norm(x[batch.logit_rows]))
