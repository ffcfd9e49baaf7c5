"""Tiny random MoE models in true architecture, and the little that it takes to run one step.

`mixtral` is made and answered by transformers, the oracle; `nova` is written tensor by tensor. The
cache here is the smallest one that keeps the decoder's contract; the engine's own is tested apart.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import MixtralConfig, MixtralForCausalLM

from novamesh_engine.models.batch import ForwardBatch
from novamesh_engine.models.config import ModelConfig

torch.set_num_threads(1)  # the machine is shared, and the models are tiny

SHAPE: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "num_experts_per_tok": 2, "max_position_embeddings": 256,
}  # fmt: skip


def save_mixtral(folder: Path, seed: int = 0, shard: str = "5GB", **changes: Any) -> Any:
    """Save a random Mixtral to a folder; returns the transformers model."""
    torch.manual_seed(seed)
    shape = SHAPE | {"intermediate_size": 128, "num_local_experts": 4} | changes
    model = MixtralForCausalLM(MixtralConfig(**shape)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # larger than the initialisation: all parts matter
            parameter.normal_(0.0, 0.15)
    model.save_pretrained(folder, max_shard_size=shard)
    return model


def nova_config(**changes: Any) -> dict[str, Any]:
    """The config.json of a small nova model."""
    shape = SHAPE | {"model_type": "nova", "num_experts": 4, "moe_intermediate_size": 64}
    extra = {"rms_norm_eps": 1e-5, "rope_theta": 1e4, "tie_word_embeddings": True}
    return shape | extra | {"bos_token_id": 1, "eos_token_id": 2} | changes


def nova_tensors(raw: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """Random weights of a nova model under their Hugging Face names."""
    config, rng = ModelConfig.from_dict(raw), torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng) * 0.15

    hidden, size = config.hidden_size, config.expert_size
    query, key = config.heads * config.head_dim, config.kv_heads * config.head_dim
    tensors = {"model.embed_tokens.weight": draw(config.vocab_size, hidden)}
    for index in range(config.layers):
        layer = f"model.layers.{index}."
        tensors[layer + "input_layernorm.weight"] = 1 + draw(hidden)
        tensors[layer + "post_attention_layernorm.weight"] = 1 + draw(hidden)
        for name, rows in (("q", query), ("k", key), ("v", key)):
            tensors[f"{layer}self_attn.{name}_proj.weight"] = draw(rows, hidden)
        tensors[layer + "self_attn.o_proj.weight"] = draw(hidden, query)
        tensors[layer + "mlp.gate.weight"] = draw(config.experts, hidden)
        for expert in range(config.experts):
            part = f"{layer}mlp.experts.{expert}."
            tensors[part + "gate_proj.weight"] = draw(size, hidden)
            tensors[part + "up_proj.weight"] = draw(size, hidden)
            tensors[part + "down_proj.weight"] = draw(hidden, size)
    tensors["model.norm.weight"] = 1 + draw(hidden)
    return tensors


def save_nova(folder: Path, seed: int = 0, **changes: Any) -> dict[str, Tensor]:
    """Save a random nova model to a folder; returns its tensors."""
    raw = nova_config(**changes)
    tensors = nova_tensors(raw, seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(raw))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return tensors


@dataclass
class PlainKV:
    """A paged cache whose sequences each own a fixed run of blocks, shuffled by `stride`."""

    config: ModelConfig
    blocks: int = 64
    block_size: int = 4
    stride: int = 7  # coprime to blocks: neighbours in a sequence are not neighbours in memory
    stores: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        shape = (self.blocks, self.config.kv_heads, self.block_size, self.config.head_dim)
        keys, values = (torch.full((self.config.layers, *shape), torch.nan) for _ in range(2))
        self.stores = list(zip(keys, values, strict=True))

    def keys(self, layer: int) -> Tensor:
        return self.stores[layer][0]

    def values(self, layer: int) -> Tensor:
        return self.stores[layer][1]

    def key_scales(self, layer: int) -> Tensor | None:
        return None

    def value_scales(self, layer: int) -> Tensor | None:
        return None

    def token(self, cache: Tensor, slot: int) -> Tensor:
        """What a cache holds at a slot: [kv_heads, head_dim]."""
        return cache[slot // self.block_size, :, slot % self.block_size]

    def table(self, owner: int, count: int) -> list[int]:
        """The blocks of a sequence: 16 each."""
        assert count <= 16
        return [(owner * 16 + i) * self.stride % self.blocks for i in range(count)]


@dataclass(frozen=True)
class Part:
    """New tokens of one sequence at a start position; `owner` names its blocks, 0 to 3.

    `prompt` is the length of the whole prompt, for rotary embeddings that go by it.
    """

    owner: int
    start: int
    tokens: Sequence[int]
    prompt: int = 0


def make_batch(kv: PlainKV, parts: Sequence[Part]) -> ForwardBatch:
    """One step over parts of several sequences, with logits for every token."""
    size, starts, tables, slots = kv.block_size, [0], [], []
    positions = [part.start + i for part in parts for i in range(len(part.tokens))]
    prompts = [part.prompt for part in parts for _ in part.tokens]
    for part in parts:
        starts.append(starts[-1] + len(part.tokens))
        table = kv.table(part.owner, 16)
        tables.append(table)
        span = range(part.start, part.start + len(part.tokens))
        slots += [table[at // size] * size + at % size for at in span]
    tokens = [token for part in parts for token in part.tokens]
    return ForwardBatch(
        token_ids=torch.tensor(tokens),
        positions=torch.tensor(positions),
        sequence_starts=torch.tensor(starts, dtype=torch.int32),
        context_lengths=torch.tensor([p.start + len(p.tokens) for p in parts], dtype=torch.int32),
        block_tables=torch.tensor(tables, dtype=torch.int32),
        slots=torch.tensor(slots),
        rope_lengths=torch.tensor(
            [max(n, at + 1) for n, at in zip(prompts, positions, strict=True)]
        ),
        logit_rows=torch.arange(len(tokens)),
    )


def relative(found: Tensor, wanted: Tensor) -> float:
    """The relative L2 distance of two tensors."""
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())
