"""The shape that is measured: Phi-mini-MoE-instruct's, as its config.json has it."""

from __future__ import annotations

from typing import Any, Final

HIDDEN: Final = 4096
LAYERS: Final = 32
HEADS: Final = 32
KV_HEADS: Final = 8
HEAD_DIM: Final = 128
EXPERTS: Final = 16
EXPERTS_PER_TOKEN: Final = 2
EXPERT_SIZE: Final = 960
VOCAB: Final = 32064
CONTEXT: Final = 4096
WINDOW: Final = 2047
EPS: Final = 1e-5
THETA: Final = 10000.0
JITTER: Final = 0.01
BOS: Final = 1
EOS: Final = 32000

SEED: Final = 20251123
WEIGHT_STD: Final = HIDDEN**-0.5  # a product keeps the size of what it is given


def hf_config(layers: int = LAYERS) -> dict[str, Any]:
    """The fields of config.json."""
    return {
        "model_type": "phimoe",
        "architectures": ["PhiMoEForCausalLM"],
        "hidden_size": HIDDEN,
        "intermediate_size": EXPERT_SIZE,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": EXPERTS_PER_TOKEN,
        "router_jitter_noise": JITTER,
        "input_jitter_noise": JITTER,
        "vocab_size": VOCAB,
        "max_position_embeddings": CONTEXT,
        "sliding_window": WINDOW,
        "attention_bias": True,
        "lm_head_bias": True,
        "rms_norm_eps": EPS,
        "rope_theta": THETA,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "torch_dtype": "bfloat16",
    }
