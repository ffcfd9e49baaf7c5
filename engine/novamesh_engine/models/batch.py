"""What one forward step reads: the tokens of all its sequences, flat, and where their KV lives.

This is the contract between the runner, which builds a batch, and the decoder, which only reads it.
Rules: tokens of a sequence are consecutive and in order of position; every new token has a slot of
its own; a decoder writes K and V at `slots` before it attends. It holds no policy and no state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

import torch
from torch import Tensor

# Kernels read these by address, so that a wrong type would be a wrong answer.
_TYPES: Final = {
    "token_ids": torch.int64,
    "positions": torch.int64,
    "sequence_starts": torch.int32,
    "context_lengths": torch.int32,
    "block_tables": torch.int32,
    "slots": torch.int64,
    "rope_lengths": torch.int64,
    "logit_rows": torch.int64,
}


class KVCache(Protocol):
    """Paged keys and values, one pair of tensors a layer; block `b` holds `block_size` slots.

    Elements are float32, bfloat16 or int8; int8 ones stand for themselves times the scale of their
    token and head. `reference.write_kv` defines what is written.
    """

    def keys(self, layer: int) -> Tensor:
        """Keys of one layer, [blocks, kv_heads, block_size, head_dim], contiguous, written here."""
        ...

    def values(self, layer: int) -> Tensor:
        """Values of one layer, [blocks, kv_heads, block_size, head_dim], contiguous."""
        ...

    def key_scales(self, layer: int) -> Tensor | None:
        """Scales of the keys, float32 [blocks, kv_heads, block_size]; None unless int8."""
        ...

    def value_scales(self, layer: int) -> Tensor | None:
        """Scales of the values, float32 [blocks, kv_heads, block_size]; None unless int8."""
        ...


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """T new tokens of S sequences; prefill chunks and single decode tokens mix freely.

    token_ids        int64 [T]
    positions        int64 [T], absolute, from 0
    sequence_starts  int32 [S + 1], the tokens of sequence s are [starts[s], starts[s + 1])
    context_lengths  int32 [S], tokens in the cache after this step, new ones included
    block_tables     int32 [S, B], block ids in order of position; unused entries hold any valid id
    slots            int64 [T], block * block_size + offset at which a new token's K and V go
    rope_lengths     int64 [T], the prompt's tokens, or position + 1 if that is more: what a rotary
                     embedding that depends on the length goes by, whatever the chunking
    logit_rows       int64 [R], the tokens (indices into T) whose logits are wanted
    """

    token_ids: Tensor
    positions: Tensor
    sequence_starts: Tensor
    context_lengths: Tensor
    block_tables: Tensor
    slots: Tensor
    rope_lengths: Tensor
    logit_rows: Tensor

    def __post_init__(self) -> None:
        for name, dtype in _TYPES.items():
            tensor = getattr(self, name)
            assert tensor.dtype == dtype, f"{name} is {tensor.dtype}"
            assert tensor.is_contiguous(), f"{name} is not contiguous"
        starts, tokens = self.sequence_starts.tolist(), self.token_ids.shape[0]
        assert starts == sorted(starts), "sequence_starts does not ascend"
        assert (starts[0], starts[-1]) == (0, tokens), "sequence_starts does not span the tokens"
        for per_token in (self.positions, self.slots, self.rope_lengths):
            assert per_token.shape == (tokens,), "not one position a token"
        assert self.block_tables.shape[0] == len(starts) - 1, "not one block table a sequence"

    def to(self, device: str) -> ForwardBatch:
        """The same batch on a device; itself where it is there already."""
        if self.token_ids.device == torch.device(device):
            return self
        return ForwardBatch(**{name: getattr(self, name).to(device) for name in _TYPES})
