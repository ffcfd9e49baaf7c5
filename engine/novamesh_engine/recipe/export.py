"""From the trainable model to files: a plain Hugging Face folder, then the NF4 profile.

Rules: fused matrices are taken apart here and nowhere else; the same network gives the same bytes;
quantizing is `novamesh_engine.quant`'s work.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Final

from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from novamesh_engine.quant.convert import convert
from novamesh_engine.quant.profile import ModelProfile
from novamesh_engine.recipe.network import NORM_EPS, ROPE_THETA, Layer, Network
from novamesh_engine.recipe.preset import Preset
from novamesh_engine.recipe.vocabulary import END, PAD, tokenizer_config

PLAIN: Final = "plain"


def model_config(preset: Preset, tokenizer: Tokenizer) -> dict[str, object]:
    """What goes into config.json."""
    return {
        "architectures": ["NovaForCausalLM"],
        "model_type": "nova",
        "dtype": "float32",
        "vocab_size": preset.vocab,
        "hidden_size": preset.hidden,
        "hidden_act": "silu",
        "num_hidden_layers": preset.layers,
        "num_attention_heads": preset.heads,
        "num_key_value_heads": preset.heads,
        "head_dim": preset.hidden // preset.heads,
        "num_experts": preset.experts,
        "num_experts_per_tok": preset.experts_per_token,
        "norm_topk_prob": True,
        "moe_intermediate_size": preset.expert_size,
        "rms_norm_eps": NORM_EPS,
        "rope_theta": ROPE_THETA,
        "tie_word_embeddings": True,
        "max_position_embeddings": preset.max_context,
        "eos_token_id": tokenizer.token_to_id(END),
        "pad_token_id": tokenizer.token_to_id(PAD),
    }


def _layer_tensors(layer: Layer, prefix: str) -> dict[str, Tensor]:
    preset = layer.preset
    tensors: dict[str, Tensor] = {
        f"{prefix}.input_layernorm.weight": layer.input_norm,
        f"{prefix}.post_attention_layernorm.weight": layer.expert_norm,
        f"{prefix}.self_attn.o_proj.weight": layer.out,
        f"{prefix}.mlp.gate.weight": layer.router,
    }
    for name, part in zip("qkv", layer.qkv.chunk(3), strict=True):
        tensors[f"{prefix}.self_attn.{name}_proj.weight"] = part
    stacks = {
        "gate": layer.gate.chunk(preset.experts),
        "up": layer.up.chunk(preset.experts),
        "down": layer.down.chunk(preset.experts, dim=1),
    }
    for kind, stack in stacks.items():
        for expert, part in enumerate(stack):
            tensors[f"{prefix}.mlp.experts.{expert}.{kind}_proj.weight"] = part
    return tensors


def plain_tensors(network: Network) -> dict[str, Tensor]:
    """Every weight under its Hugging Face name, contiguous float32."""
    tensors: dict[str, Tensor] = {
        "model.embed_tokens.weight": network.embedding,
        "model.norm.weight": network.norm,
    }
    for number, layer in enumerate(network.layers):
        assert isinstance(layer, Layer), "a network is made of layers"
        tensors |= _layer_tensors(layer, f"model.layers.{number}")
    return {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}


def _write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_plain(network: Network, tokenizer: Tokenizer, folder: Path) -> None:
    """A plain model folder that transformers' conventions describe, in float32."""
    folder.mkdir(parents=True, exist_ok=True)
    preset = network.preset
    save_file(plain_tensors(network), folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    _write_json(folder / "tokenizer_config.json", tokenizer_config(preset))
    _write_json(folder / "config.json", model_config(preset, tokenizer))


def export(network: Network, tokenizer: Tokenizer, out: Path) -> ModelProfile:
    """Write `out/plain` and the NF4 profile `out/nova-<preset>`, replacing an older plain folder.

    Raises:
        NovaMeshError: the profile folder holds something already.
    """
    plain = out / PLAIN
    if plain.exists():
        shutil.rmtree(plain)
    write_plain(network, tokenizer, plain)
    name = f"nova-{network.preset.name}"
    return convert(plain, out / name, name)
