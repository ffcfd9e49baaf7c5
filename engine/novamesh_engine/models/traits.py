"""What is particular to each family of models: one row a family, and what no family has.

A row says how tensors are named, which optional fields of config.json the family understands, and
the defaults of fields that a config may leave out (transformers' own). Rules: data only; a field
that a family does not understand must be neutral, or the config is refused.
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


_SPLIT: Final = ("gate_proj", "up_proj", "down_proj")
_NUMBERED: Final = ("w1", "w3", "w2")
_PLAIN: Final = (Naming("mlp", "gate", _SPLIT), Naming("mlp", "gate", None))

TRAITS: Final[dict[str, Traits]] = {
    "mixtral": Traits(
        (Naming("block_sparse_moe", "gate", _NUMBERED), Naming("mlp", "gate", None)),
        ("intermediate_size",), 1e6, 1e-5, 131072, renormalise=Flag(None, True),
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

# What must be absent, or one of these values, unless the family understands it. Most are
# traits of families that are not here; a config that sets one would run as another model.
NEUTRAL: Final[dict[str, tuple[Any, ...]]] = {
    "attention_bias": (False, None),
    "attention_chunk_size": (None,),
    "attention_multiplier": (None,),
    "attn_logit_softcapping": (None,),
    "clip_qkv": (None,),
    "decoder_sparse_step": (1, None),
    "embedding_multiplier": (1, None),
    "final_logit_softcapping": (None,),
    "first_k_dense_replace": (0, None),
    "lm_head_bias": (False, None),
    "logits_scaling": (1, None),
    "mlp_bias": (False, None),
    "mlp_only_layers": ([], None),
    "n_group": (1, None),
    "n_shared_experts": (0, None),
    "norm_topk_prob": (True, None),
    "num_shared_experts": (0, None),
    "qk_layernorm": (False, None),
    "qkv_bias": (False, None),
    "quantization": (None,),
    "quantization_config": (None,),
    "residual_multiplier": (1, None),
    "routed_scaling_factor": (1, None),
    "scoring_func": ("softmax", None),
    "shared_expert_intermediate_size": (0, None),
    "topk_group": (1, None),
    "use_qk_norm": (False, None),
    "use_sliding_window": (False, None),
}  # fmt: skip


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
