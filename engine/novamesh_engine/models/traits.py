"""What is particular to each family of models: one row a family, and what no family has.

A row says how tensors are named, which optional fields of config.json the family understands, and
the defaults of fields that a config may leave out (transformers' own). Rules: data only; a field
that a family does not know must be neutral, or the config is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class Naming:
    """How a checkpoint names a layer's mixture of experts.

    `module` is below model.layers.{i}, `router` below that. `keys` are one expert's gate, up and
    down below experts.{e}; None where all experts are stacked in two tensors, as transformers
    keeps them since version 5.
    """

    module: str
    router: str
    keys: tuple[str, str, str] | None


@dataclass(frozen=True, slots=True)
class Flag:
    """A switch: the field that sets it and its default; without a field it is fixed."""

    field: str | None
    default: bool


@dataclass(frozen=True, slots=True)
class Traits:
    """One family."""

    namings: tuple[Naming, ...]  # as its checkpoints have been published, the usual one first
    expert_size: tuple[str, ...]  # config fields, the first present one counts
    rope_theta: float
    norm_eps: float
    max_context: int
    tie_embeddings: bool = False
    qkv_bias: Flag = Flag(None, False)
    output_bias: Flag = Flag(None, False)
    head_bias: Flag = Flag(None, False)
    renormalise: Flag = Flag("norm_topk_prob", False)
    centred: bool = False  # LayerNorm with a bias, not RMS norm
    query_key_norm: str = ""  # "head": each head by itself, "full": all heads together
    clip: bool = False  # understands clip_qkv
    sparsemixer: bool = False  # GRIN's router (arXiv:2409.12136): two experts
    rope_mscales: bool = False
    sparse_step: bool = False  # understands mlp_only_layers and decoder_sparse_step
    shared_expert: bool = False
    windows: str = "every"  # sliding_window: "every" layer, "switched" on, "alternate", or "none"
    training: tuple[str, ...] = ()  # fields of its own that training alone goes by


_SPLIT: Final = ("gate_proj", "up_proj", "down_proj")
_NUMBERED: Final = ("w1", "w3", "w2")
_PLAIN: Final = (Naming("mlp", "gate", _SPLIT), Naming("mlp", "gate", None))

TRAITS: Final[dict[str, Traits]] = {
    "mixtral": Traits(
        (Naming("block_sparse_moe", "gate", _NUMBERED), Naming("mlp", "gate", None)),
        ("intermediate_size",), 1e6, 1e-5, 131072, renormalise=Flag(None, True),
        training=("router_jitter_noise",),
    ),
    "nova": Traits(
        _PLAIN, ("moe_intermediate_size", "intermediate_size"), 1e4, 1e-5, 4096,
        tie_embeddings=True, renormalise=Flag("norm_topk_prob", True),
    ),
    "olmoe": Traits(
        _PLAIN, ("intermediate_size",), 1e4, 1e-5, 4096, windows="none", query_key_norm="full",
        qkv_bias=Flag("attention_bias", False), output_bias=Flag("attention_bias", False),
        clip=True,
    ),
    "phimoe": Traits(
        (Naming("block_sparse_moe", "gate", _NUMBERED), Naming("mlp", "router", None)),
        ("intermediate_size",), 1e6, 1e-5, 131072, renormalise=Flag(None, False),
        qkv_bias=Flag("attention_bias", False), output_bias=Flag("attention_bias", False),
        head_bias=Flag("lm_head_bias", False), centred=True, sparsemixer=True, rope_mscales=True,
        training=("input_jitter_noise", "hidden_dropout"),
    ),
    "qwen2_moe": Traits(
        _PLAIN, ("moe_intermediate_size",), 1e4, 1e-6, 32768, windows="alternate",
        qkv_bias=Flag("qkv_bias", True), sparse_step=True, shared_expert=True,
    ),
    "qwen3_moe": Traits(
        _PLAIN, ("moe_intermediate_size",), 1e4, 1e-6, 32768, windows="switched",
        qkv_bias=Flag("attention_bias", False), output_bias=Flag("attention_bias", False),
        query_key_norm="head", sparse_step=True,
    ),
}  # fmt: skip

# What every family may have: its shape, read and checked by `config`.
SHAPE: Final = frozenset({
    "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
    "num_attention_heads", "num_key_value_heads", "head_dim", "num_local_experts", "num_experts",
    "num_experts_per_tok", "rms_norm_eps", "hidden_act", "tie_word_embeddings", "layer_types",
    "sliding_window", "max_position_embeddings", "original_max_position_embeddings", "rope_theta",
    "rope_scaling", "rope_parameters", "partial_rotary_factor", "bos_token_id", "eos_token_id",
})  # fmt: skip

# What no logit depends on: who wrote the file, how to train, how to call and to sample. As
# transformers 4 and 5 write them; sampling is read from generation_config.json.
IDLE: Final = frozenset({
    "_attn_implementation", "_attn_implementation_autoset", "_commit_hash",
    "_experts_implementation", "_name_or_path", "architectures", "attention_dropout",
    "attn_implementation", "auto_map", "bad_words_ids", "begin_suppress_tokens",
    "chunk_size_feed_forward", "decoder_start_token_id", "diversity_penalty", "do_sample", "dtype",
    "early_stopping", "embd_pdrop", "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty", "finetuning_task", "forced_bos_token_id",
    "forced_eos_token_id", "gradient_checkpointing", "id2label", "initializer_range", "is_decoder",
    "is_encoder_decoder", "keys_to_ignore_at_inference", "label2id", "length_penalty", "max_length",
    "min_length", "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_return_sequences",
    "output_attentions", "output_hidden_states", "output_router_logits", "output_scores",
    "pad_token_id", "prefix", "pretraining_tp", "problem_type", "pruned_heads",
    "remove_invalid_values", "repetition_penalty", "resid_pdrop", "return_dict",
    "return_dict_in_generate", "router_aux_loss_coef", "sep_token_id", "suppress_tokens",
    "task_specific_params", "temperature", "tf_legacy_loss", "tokenizer_class", "top_k", "top_p",
    "torch_dtype", "torchscript", "transformers_version", "typical_p", "unsloth_fixed",
    "unsloth_version", "use_bfloat16", "use_cache",
})  # fmt: skip

# Values of fields that a family does not know which make no difference, the first one preferred.
# Most are traits of families that are not here; a config that sets one would run as another model.
# Any other field must be null, false or empty.
NEUTRAL: Final[dict[str, tuple[Any, ...]]] = {
    "attention_bias": (False, None),
    "clip_qkv": (None,),
    "decoder_sparse_step": (1, None),
    "embedding_multiplier": (1, None),
    "first_k_dense_replace": (0, None),
    "is_causal": (True, None),
    "lm_head_bias": (False, None),
    "logit_scale": (1, None),
    "logits_scaling": (1, None),
    "mlp_only_layers": ([], None),
    "moe_layer_freq": (1, None),
    "n_group": (1, None),
    "n_shared_experts": (0, None),
    "norm_topk_prob": (True, None),
    "num_shared_experts": (0, None),
    "qkv_bias": (False, None),
    "quantization": (None,),
    "quantization_config": (None,),
    "residual_multiplier": (1, None),
    "routed_scaling_factor": (1, None),
    "scale_attn_weights": (True, None),
    "scoring_func": ("softmax", None),
    "shared_expert_intermediate_size": (0, None),
    "topk_group": (1, None),
    "use_rope": (True, None),
    "use_sliding_window": (False, None),
}


def understood(traits: Traits) -> frozenset[str]:
    """The optional fields that mean something to a family."""
    flags = (traits.qkv_bias, traits.output_bias, traits.head_bias, traits.renormalise)
    found = {flag.field for flag in flags if flag.field is not None}
    for has, fields in (
        (traits.clip, {"clip_qkv"}),
        (traits.sparse_step, {"decoder_sparse_step", "mlp_only_layers"}),
        (traits.shared_expert, {"shared_expert_intermediate_size"}),
        (traits.windows in ("switched", "alternate"), {"use_sliding_window"}),
        (traits.sparsemixer, {"norm_topk_prob"}),  # its weights are never scaled to sum to one
    ):
        found |= fields if has else set()
    return frozenset(found)


def known(traits: Traits) -> frozenset[str]:
    """All fields that a config of a family may have, whatever they say."""
    windowed = traits.windows in ("switched", "alternate")
    own = {"router_jitter_noise"} if traits.sparsemixer else set()
    own |= {"max_window_layers"} if windowed else set()
    return SHAPE | IDLE | understood(traits) | own | {*traits.expert_size, *traits.training}


def is_neutral(name: str, value: object) -> bool:
    """Whether a field that a family does not know makes no difference: there is nothing in it."""
    if name in NEUTRAL:
        return value in NEUTRAL[name]
    return value is None or value is False or value == [] or value == {}
