"""Tiny random checkpoints of each family, made and answered by transformers, the oracle.

A case is one config in one form on disk. Weights resemble a trained model's: each matrix keeps the
size of what it multiplies, each layer adds a fraction to the stream, and routers decide clearly, by
what token it is. So a forward that rounds activations is off by what it would be off in earnest,
and not by experts that random scores leave to chance. `run` asks any forward.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from novamesh_engine.models.batch import ForwardBatch, KVCache
from novamesh_engine.models.config import ModelConfig
from novamesh_engine.quant.codebook import NF4Matrix, dequantize
from novamesh_engine.weights.load import PackedSource
from novamesh_engine.weights.names import find_naming, pieces
from novamesh_engine.weights.store import TensorStore
from support.tiny_moe import Part, PlainKV, make_batch, relative

PROMPT: Final = 64
DECODED: Final = 64
CHUNK: Final = 40  # the prompt is prefilled in two chunks, which must change nothing
Forward = Callable[[ForwardBatch, KVCache], Tensor]

_MODELS: Final[dict[str, tuple[Any, Any]]] = {
    "mixtral": (transformers.MixtralConfig, transformers.MixtralForCausalLM),
    "nova": (transformers.MixtralConfig, transformers.MixtralForCausalLM),  # by other names
    "olmoe": (transformers.OlmoeConfig, transformers.OlmoeForCausalLM),
    "phimoe": (transformers.PhimoeConfig, transformers.PhimoeForCausalLM),
    "qwen2_moe": (transformers.Qwen2MoeConfig, transformers.Qwen2MoeForCausalLM),
    "qwen3_moe": (transformers.Qwen3MoeConfig, transformers.Qwen3MoeForCausalLM),
}
_SHAPE: Final[dict[str, Any]] = {
    "vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "moe_intermediate_size": 64,
    "shared_expert_intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "num_experts_per_tok": 2, "num_local_experts": 6, "num_experts": 6,
    "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None,
}  # fmt: skip
# A field of a family that has not got it would be refused.
_FOREIGN: Final[dict[str, tuple[str, ...]]] = {
    "mixtral": ("moe_intermediate_size", "shared_expert_intermediate_size", "num_experts"),
    "nova": ("moe_intermediate_size", "shared_expert_intermediate_size", "num_experts"),
    "olmoe": ("moe_intermediate_size", "shared_expert_intermediate_size", "num_local_experts"),
    "phimoe": ("moe_intermediate_size", "shared_expert_intermediate_size", "num_experts"),
    "qwen2_moe": ("num_local_experts",),
    "qwen3_moe": ("shared_expert_intermediate_size", "num_local_experts"),
}

# What Mixtral calls what nova has: parts of tensors' names, and fields.
_NOVA: Final[dict[str, str]] = {
    "block_sparse_moe": "mlp", "w1": "gate_proj", "w3": "up_proj", "w2": "down_proj",
    "num_local_experts": "num_experts", "intermediate_size": "moe_intermediate_size",
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One checkpoint: `changes` to the tiny shape, and the form it is saved in.

    `stacked` keeps transformers' own names (all experts in two tensors) instead of the published
    ones; `hidden` are fields taken out of config.json; `old` writes rope_scaling, not
    rope_parameters; `shard` is the size of a file, so that one expert may be in two.
    """

    name: str
    family: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    shard: str = "5GB"
    stacked: bool = False
    hidden: tuple[str, ...] = ()
    old: bool = False


def _rope(kind: str, original: int | None = None, **numbers: Any) -> dict[str, Any]:
    known = {} if original is None else {"original_max_position_embeddings": original}
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4} | known | numbers}


_FACTORS: Final = {
    "short_factor": [1.0 + i / 8 for i in range(8)],
    "long_factor": [2.0 + i / 2 for i in range(8)],
}
_PHI_BIASES: Final = {"attention_bias": True, "lm_head_bias": True}


def _phi_longrope(original: int) -> dict[str, Any]:
    return _rope("longrope", original, short_mscale=1.1, long_mscale=1.3, **_FACTORS)


# Prompts are 64 tokens and answers end at 128: an original context of 48 is exceeded by the
# prompt, one of 96 while decoding.
CASES: Final = (
    Case("mixtral", "mixtral"),
    Case("mixtral-narrow-top1", "mixtral", {
        "head_dim": 32, "num_experts_per_tok": 1, "num_local_experts": 3, "sliding_window": 24,
        "tie_word_embeddings": True,
    }, shard="60KB"),
    Case("mixtral-stacked", "mixtral", {"num_key_value_heads": 1}, stacked=True),
    Case("mixtral-linear", "mixtral", _rope("linear", factor=4.0), old=True),
    Case("mixtral-dynamic", "mixtral",
         {"max_position_embeddings": 48, "head_dim": 16} | _rope("dynamic", factor=4.0)),
    Case("mixtral-dynamic-late", "mixtral",
         {"max_position_embeddings": 96, "head_dim": 16} | _rope("dynamic", factor=2.0), old=True),
    Case("mixtral-longrope", "mixtral",
         {"head_dim": 16} | _rope("longrope", 48, factor=4.0, **_FACTORS)),
    Case("mixtral-llama3", "mixtral",
         _rope("llama3", 48, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)),
    Case("nova", "nova", {"tie_word_embeddings": True, "num_experts_per_tok": 3}),
    Case("phimoe", "phimoe", _PHI_BIASES | {"head_dim": 32, "sliding_window": 47},
         shard="60KB", hidden=("head_dim",)),
    Case("phimoe-stacked", "phimoe", {"router_jitter_noise": 0.05}, stacked=True),
    Case("phimoe-longrope", "phimoe", _PHI_BIASES | _phi_longrope(48), old=True),
    Case("phimoe-longrope-late", "phimoe", _phi_longrope(96)),
    Case("olmoe", "olmoe", {"num_key_value_heads": 4, "clip_qkv": 0.8}),
    Case("olmoe-grouped", "olmoe", {
        "attention_bias": True, "norm_topk_prob": True, "num_experts_per_tok": 3,
    }, stacked=True),
    Case("qwen2_moe", "qwen2_moe", {"num_hidden_layers": 3, "mlp_only_layers": [1]}, shard="90KB"),
    Case("qwen2_moe-windows", "qwen2_moe", {
        "num_hidden_layers": 4, "decoder_sparse_step": 2, "use_sliding_window": True,
        "sliding_window": 20, "max_window_layers": 3, "qkv_bias": False, "norm_topk_prob": True,
        "tie_word_embeddings": True,
    }, stacked=True),
    Case("qwen3_moe", "qwen3_moe", {"head_dim": 32, "norm_topk_prob": True}),
    Case("qwen3_moe-yarn", "qwen3_moe", {
        "head_dim": 32, "num_experts_per_tok": 1, "attention_bias": True, "mlp_only_layers": [0],
    } | _rope("yarn", 48, factor=4.0), old=True),
    Case("qwen3_moe-yarn-windows", "qwen3_moe", {
        "head_dim": 32, "use_sliding_window": True, "sliding_window": 16,
    } | _rope("yarn", 32, factor=8.0, mscale=1.2, mscale_all_dim=0.6, truncate=False),
         stacked=True),
)  # fmt: skip


def tokens_of(seed: int, count: int = PROMPT + DECODED) -> list[int]:
    """Random token ids."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(3, 256, (count,), generator=rng).tolist()


def make_checkpoint(case: Case, folder: Path) -> Any:
    """Save the checkpoint of a case; returns the transformers model, ready to be asked."""
    config_class, model_class = _MODELS[case.family]
    shape = {k: v for k, v in _SHAPE.items() if k not in _FOREIGN[case.family]}
    torch.manual_seed(sum(case.name.encode()))
    config = config_class(**shape | dict(case.changes), attn_implementation="eager")
    model = _prepare(model_class(config))
    topics = torch.linalg.qr(torch.randn(config.hidden_size, _experts(config)))[0].T
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(_weights(name, tuple(parameter.shape), topics))
    model.save_pretrained(
        folder, max_shard_size=case.shard, save_original_format=not case.stacked
    )  # fmt: skip
    path = folder / "config.json"
    path.write_text(json.dumps(_rewritten(case, json.loads(path.read_text()))))
    if case.family == "nova":
        _translate(folder, folder, "nova")
    return model


def load_oracle(case: Case, folder: Path) -> Any:
    """The transformers model of a folder that holds a checkpoint of this case."""
    _, model_class = _MODELS[case.family]
    if case.family == "nova":
        _translate(folder, folder := folder / "mixtral", "mixtral")
    config = transformers.AutoConfig.from_pretrained(folder)
    for name in case.hidden:  # transformers does not read it from the weights, as we do
        setattr(config, name, case.changes[name])
    return _prepare(
        model_class.from_pretrained(
            folder, config=config, dtype=torch.float32, attn_implementation="eager"
        )
    )


def _translate(source: Path, target: Path, family: str) -> None:
    """Write nova's checkpoint as Mixtral's, or the other way: they differ in names only."""
    names = _NOVA if family == "nova" else {nova: theirs for theirs, nova in _NOVA.items()}

    def renamed(name: str) -> str:
        return ".".join(names.get(part, part) for part in name.split("."))

    tensors = load_file(source / "model.safetensors")
    raw = json.loads((source / "config.json").read_text()) | {"model_type": family}
    raw.pop("router_jitter_noise", None)  # of training, and not a field of nova
    raw = {renamed(name): value for name, value in raw.items()}
    target.mkdir(exist_ok=True)
    (target / "config.json").write_text(json.dumps(raw))
    tensors = {renamed(name): tensor.clone() for name, tensor in tensors.items()}
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})


def _prepare(model: Any) -> Any:
    """Plain loops over experts; and Phi-3.5-MoE's long factors, which are its definition.

    transformers 5.23 no longer passes them the sequence length, so that beyond the original context
    its phimoe goes on with the short factors; versions 4 and 5.0, and the model's own code, do.
    """
    model.set_experts_implementation("eager")
    model.eval()
    rope = model.config.rope_parameters
    if model.config.model_type == "phimoe" and rope["rope_type"] == "longrope":
        rotary = model.model.rotary_emb

        def lengthwise(module: Any, args: Any, kwargs: Mapping[str, Any]) -> None:
            length = int(kwargs["position_ids"].max()) + 1
            compute = ROPE_INIT_FUNCTIONS["longrope"]
            module.rope_init_fn = partial(compute, seq_len=length)

        rotary.register_forward_pre_hook(lengthwise, with_kwargs=True)
    return model


def _experts(config: Any) -> int:
    return int(getattr(config, "num_local_experts", 0) or config.num_experts)


def _weights(name: str, shape: tuple[int, ...], topics: Tensor) -> Tensor:
    """Random values of the size that a trained model's have, by what they are.

    `topics` [E, H] are orthonormal: tokens are made of them, routers ask for them, and layers write
    beside them.
    """
    noise = torch.randn(shape)
    kept = shape[-1] ** -0.5  # keeps the size of what it multiplies
    if name.endswith("norm.weight"):
        return 1 + 0.2 * noise
    if name.endswith(("norm.bias", "o_proj.bias")):
        return 0.2 * (noise - noise @ topics.T @ topics)
    if name.endswith("bias"):
        return 0.2 * noise
    if "embed_tokens" in name:
        ranks = torch.rand(shape[0], len(topics)).argsort(-1) / (len(topics) - 1) * 2 - 1
        return 2 * ranks @ topics + kept * (noise - noise @ topics.T @ topics)
    if name.endswith(("mlp.gate.weight", "router.weight")):
        return topics[torch.randperm(len(topics))] + 0.1 * kept * noise
    if name.endswith(("o_proj.weight", "down_proj.weight", "down_proj")):
        return kept * 0.3 * (noise - topics.T @ (topics @ noise))
    return noise * kept * (2 if "lm_head" in name else 1)


def _rewritten(case: Case, raw: dict[str, Any]) -> dict[str, Any]:
    raw = {name: value for name, value in raw.items() if name not in case.hidden}
    if case.old:
        rope = raw.pop("rope_parameters")
        raw |= {"rope_theta": rope.pop("rope_theta")}
        raw |= {"rope_scaling": {"type": rope.pop("rope_type")} | rope}
    return raw


def ask(oracle: Any, tokens: list[int], prompt: int = PROMPT) -> Tensor:
    """transformers' logits [tokens, vocab]: the prompt at once, then one by one from its cache."""
    with torch.inference_mode():
        out = oracle(torch.tensor([tokens[:prompt]]), use_cache=True)
        logits = [out.logits[0]]
        for token in tokens[prompt:]:
            out = oracle(
                torch.tensor([[token]]), past_key_values=out.past_key_values, use_cache=True
            )
            logits.append(out.logits[0])
    return torch.cat(logits)


def run(forward: Forward, config: ModelConfig, tokens: list[int], prompt: int = PROMPT) -> Tensor:
    """A forward's logits [tokens, vocab]: the prompt in two chunks, then one by one."""
    kv = PlainKV(config, block_size=8)
    cuts = [0, *range(CHUNK, prompt, CHUNK), *range(prompt, len(tokens) + 1)]
    parts = [Part(1, start, tokens[start:stop], prompt) for start, stop in pairwise(cuts)]
    return torch.cat([forward(make_batch(kv, [part]), kv) for part in parts])


def divergence(found: Tensor, wanted: Tensor) -> float:
    """Mean Kullback-Leibler divergence of the next token's distributions, in nats."""
    theirs = torch.log_softmax(wanted.double(), -1)
    ours = torch.log_softmax(found.double(), -1)
    return float((theirs.exp() * (theirs - ours)).sum(-1).mean())


def unpack(profile: Path, source: Path, folder: Path) -> None:
    """Write the plain checkpoint whose weights are those of an NF4 profile of `source`."""
    store = TensorStore.open(profile)
    packed = PackedSource.of(ModelConfig.from_file(profile / "config.json"), store)
    naming = find_naming(packed.config, TensorStore.open(source).files)
    tensors: dict[str, Tensor] = {}
    for piece in pieces(packed.config, naming):
        weight = packed.take(piece)
        wide = dequantize(weight) if isinstance(weight, NF4Matrix) else weight.float()
        flat = wide.flatten().split([torch.Size(part.shape).numel() for part in piece.parts])
        for part, values in zip(piece.parts, flat, strict=True):
            tensors[part.name] = values.view(part.shape).clone()
    folder.mkdir()
    (folder / "config.json").write_bytes((source / "config.json").read_bytes())
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


__all__ = [
    "CASES", "Case", "ask", "divergence", "load_oracle", "make_checkpoint", "relative", "run",
    "tokens_of", "unpack",
]  # fmt: skip
