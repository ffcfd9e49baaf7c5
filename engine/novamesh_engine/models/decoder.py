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
from novamesh_engine.models.layers import Linear, RMSNorm, Rotary
from novamesh_engine.models.moe import MoE


@dataclass(frozen=True, slots=True)
class Layer:
    """Pre-normalised attention, then pre-normalised experts, each added to its input."""

    attention_norm: RMSNorm
    attention: Attention
    moe_norm: RMSNorm
    moe: MoE

    def __call__(
        self, x: Tensor, angles: tuple[Tensor, Tensor], batch: ForwardBatch, kv: KVCache
    ) -> Tensor:
        """x float32 [T, H] to float32 [T, H]."""
        x = x + self.attention(self.attention_norm(x), angles, batch, kv)
        return x + self.moe(self.moe_norm(x))


@dataclass(frozen=True, slots=True)
class Decoder:
    """A whole model. `embedding` [vocab, H] may be any floating type."""

    config: ModelConfig
    embedding: Tensor
    rotary: Rotary
    layers: tuple[Layer, ...]
    norm: RMSNorm
    head: Linear

    @torch.inference_mode()
    def forward(self, batch: ForwardBatch, kv: KVCache) -> Tensor:
        """Logits float32 [R, vocab] of batch.logit_rows; writes the new tokens' K and V."""
        x = torch.nn.functional.embedding(batch.token_ids, self.embedding).float()
        angles = self.rotary.angles(batch.positions)
        for layer in self.layers:
            x = layer(x, angles, batch, kv)
        return self.head(self.norm(x[batch.logit_rows]))
