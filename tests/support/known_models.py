"""The fields that count of the config.json files of published models."""

from __future__ import annotations

from typing import Any

QWEN3_30B = {
    "model_type": "qwen3_moe", "vocab_size": 151936, "hidden_size": 2048, "head_dim": 128,
    "intermediate_size": 6144, "moe_intermediate_size": 768, "num_hidden_layers": 48,
    "num_attention_heads": 32, "num_key_value_heads": 4, "num_experts": 128,
    "num_experts_per_tok": 8, "mlp_only_layers": [], "decoder_sparse_step": 1,
    "attention_bias": False, "max_window_layers": 48, "sliding_window": None,
    "use_sliding_window": False, "rope_scaling": None, "rope_theta": 1e7, "norm_topk_prob": True,
    "max_position_embeddings": 262144,
}  # fmt: skip
QWEN15_A27B = {
    "model_type": "qwen2_moe", "vocab_size": 151936, "hidden_size": 2048, "norm_topk_prob": False,
    "intermediate_size": 5632, "moe_intermediate_size": 1408, "num_hidden_layers": 24,
    "shared_expert_intermediate_size": 5632, "num_attention_heads": 16, "num_experts": 60,
    "num_key_value_heads": 16, "num_experts_per_tok": 4, "max_window_layers": 21,
    "sliding_window": 32768, "use_sliding_window": False, "max_position_embeddings": 8192,
}  # fmt: skip
OLMOE_1B_7B = {
    "model_type": "olmoe", "vocab_size": 50304, "hidden_size": 2048, "intermediate_size": 1024,
    "num_hidden_layers": 16, "num_attention_heads": 16, "num_key_value_heads": 16,
    "num_experts": 64, "num_experts_per_tok": 8, "clip_qkv": None, "norm_topk_prob": False,
    "attention_bias": False, "max_position_embeddings": 4096,
}  # fmt: skip
PHI_35_MOE = {
    "model_type": "phimoe", "vocab_size": 32064, "hidden_size": 4096, "intermediate_size": 6400,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "num_local_experts": 16, "num_experts_per_tok": 2, "attention_bias": True,
    "lm_head_bias": True, "input_jitter_noise": 0.01, "router_jitter_noise": 0.01,
    "sliding_window": 131072, "max_position_embeddings": 131072, "rope_theta": 1e4,
    "original_max_position_embeddings": 4096,
    "rope_scaling": {
        "type": "longrope", "short_factor": [1.0] * 64, "long_factor": [2.0] * 64,
        "original_max_position_embeddings": 4096, "short_mscale": 1.243163121016122,
        "long_mscale": 1.243163121016122,
    },
}  # fmt: skip
PHI_MINI = PHI_35_MOE | {
    "intermediate_size": 960, "sliding_window": 2047, "max_position_embeddings": 4096,
    "rope_scaling": None,
}  # fmt: skip
PHI_TINY = PHI_MINI | {
    "intermediate_size": 448, "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 128,
}  # fmt: skip

# By their names in our catalogue.
CATALOGUED: dict[str, dict[str, Any]] = {
    "phi-tiny-moe-instruct": PHI_TINY,
    "phi-mini-moe-instruct": PHI_MINI,
    "olmoe-1b-7b-0125-instruct": OLMOE_1B_7B,
    "qwen1.5-moe-a2.7b-chat": QWEN15_A27B,
    "qwen3-30b-a3b-instruct-2507": QWEN3_30B,
}
