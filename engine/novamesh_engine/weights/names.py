"""What tensors are called: in plain checkpoints of each family, and in our NF4 profiles.

A profile keeps Hugging Face's names where a tensor is kept as it is; q, k and v become one `qkv`,
experts become two stacks, and the scales of a packed tensor are named after it.
"""

from __future__ import annotations

from typing import Final

from novamesh_engine.models.config import ModelConfig

EMBEDDING: Final = "model.embed_tokens.weight"
NORM: Final = "model.norm.weight"
HEAD: Final = "lm_head.weight"
ABSMAX: Final = ".absmax"


def attention_name(layer: int, key: str) -> str:
    """The name of an attention projection: q, k, v, o, or our profile's qkv."""
    return f"model.layers.{layer}.self_attn.{key}_proj.weight"


def expert_name(config: ModelConfig, layer: int, expert: int, key: str) -> str:
    """The name of one expert's matrix in a plain checkpoint."""
    return f"model.layers.{layer}.{config.traits.moe}.experts.{expert}.{key}.weight"


def stack_name(config: ModelConfig, layer: int, key: str) -> str:
    """The name of all experts' stacked matrices in a profile."""
    return f"model.layers.{layer}.{config.traits.moe}.experts.{key}_proj"


def router_name(config: ModelConfig, layer: int) -> str:
    """The name of a layer's router."""
    return f"model.layers.{layer}.{config.traits.moe}.gate.weight"


def norm_names(layer: int) -> tuple[str, str]:
    """The names of the norms before attention and before the experts."""
    prefix = f"model.layers.{layer}"
    return f"{prefix}.input_layernorm.weight", f"{prefix}.post_attention_layernorm.weight"
