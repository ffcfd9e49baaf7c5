"""What is measured: three published models' shapes, and how much of it, in earnest and tiny."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from cpu.shape import hf_config

from novamesh_engine.models.config import ModelConfig

PHI_MINI: Final = "Phi-mini"  # the shape that peers are set beside, and whose gates have no name
QWEN3: Final = "Qwen3-30B-A3B"
PAGE: Final = 16  # tokens

_RAW: Final[dict[str, dict[str, Any]]] = {
    PHI_MINI: hf_config(),
    "OLMoE": {
        "model_type": "olmoe", "vocab_size": 50304, "hidden_size": 2048, "intermediate_size": 1024,
        "num_hidden_layers": 16, "num_attention_heads": 16, "num_key_value_heads": 16,
        "num_experts": 64, "num_experts_per_tok": 8, "norm_topk_prob": False,
        "max_position_embeddings": 4096,
    },
    QWEN3: {
        "model_type": "qwen3_moe", "vocab_size": 151936, "hidden_size": 2048, "head_dim": 128,
        "moe_intermediate_size": 768, "num_hidden_layers": 48, "num_attention_heads": 32,
        "num_key_value_heads": 4, "num_experts": 128, "num_experts_per_tok": 8,
        "norm_topk_prob": True, "rope_theta": 1e6, "max_position_embeddings": 32768,
    },
}  # fmt: skip
_TINY: Final[dict[str, Any]] = {
    "vocab_size": 64, "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
    "head_dim": 32, "max_position_embeddings": 256, "eos_token_id": 2,
}  # fmt: skip
_TINY_OWN: Final[dict[str, dict[str, Any]]] = {
    PHI_MINI: {
        "num_hidden_layers": 2, "intermediate_size": 64, "num_key_value_heads": 1,
        "num_local_experts": 4, "sliding_window": 70,
    },
    "OLMoE": {
        "intermediate_size": 64, "num_key_value_heads": 2, "num_experts": 8,
        "num_experts_per_tok": 3,
    },
    QWEN3: {
        "moe_intermediate_size": 64, "num_key_value_heads": 1, "num_experts": 6,
        "num_experts_per_tok": 2,
    },
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Extent:
    """How much is measured; a sequence of the batches has `pages` pages."""

    batches: tuple[int, ...]
    prompts: tuple[int, ...]
    pages: int
    depth: int  # tokens before the first single one
    steps: int  # single tokens in a round
    warm: int  # single tokens before the first round
    rounds: int
    runs: int  # of a kernel
    context: int  # that attention is measured over, or a model's own if that is less
    copied_bytes: int
    product: int  # rows and columns of the matrices that the compute rate is measured with
    energy_s: float


FULL: Final = Extent(
    batches=(1, 4, 16, 32), prompts=(512, 4096), pages=8, depth=16, steps=48, warm=4, rounds=5,
    runs=21, context=16384, copied_bytes=1 << 30, product=8192, energy_s=2.0,
)  # fmt: skip
TINY: Final = Extent(
    batches=(1, 4, 16, 32), prompts=(3, 17), pages=2, depth=16, steps=1, warm=0, rounds=1,
    runs=1, context=80, copied_bytes=1 << 20, product=64, energy_s=0.0,
)  # fmt: skip


def configs(tiny: bool) -> dict[str, ModelConfig]:
    """The models by name, the one that peers are measured on first."""
    return {name: ModelConfig.from_dict(raw_config(name, tiny)) for name in _RAW}


def raw_config(name: str, tiny: bool) -> dict[str, Any]:
    """The fields of a config.json."""
    return _RAW[name] | (_TINY | _TINY_OWN[name] if tiny else {})
