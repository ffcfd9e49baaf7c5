"""A plain Hugging Face MoE folder to an NF4 profile folder.

bitsandbytes quantizes, so that its bytes are ours by construction. Attention, experts and an untied
head become NF4; the embedding becomes float16; router and norms stay float32. Rules: one matrix is
unpacked at a time, shards are written as they fill, the manifest last; the same folder gives the
same bytes. This is the one module that needs bitsandbytes, and nothing imports it to serve.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import bitsandbytes.functional as bnb
import torch
from safetensors.torch import save_file
from torch import Tensor

from novamesh_engine.models.config import CONFIG_FILE, ModelConfig
from novamesh_engine.quant.codebook import BLOCK, NF4Matrix
from novamesh_engine.quant.profile import ModelProfile, write_profile
from novamesh_engine.weights.load import PlainSource
from novamesh_engine.weights.names import (
    ABSMAX,
    EMBEDDING,
    HEAD,
    NORM,
    attention_name,
    norm_names,
    router_name,
    stack_name,
)
from novamesh_engine.weights.store import INDEX_FILE, TensorStore
from novamesh_proto.errors import Code, NovaMeshError

SHARD_BYTES: Final = 1 << 30
# What a profile carries beside its weights, where the source has it.
COMPANIONS: Final = (
    "chat_template.jinja", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
)  # fmt: skip


def convert(source: Path, target: Path, name: str, shard_bytes: int = SHARD_BYTES) -> ModelProfile:
    """Quantize a model folder into a new profile folder and return the profile.

    Raises: NovaMeshError (conflict) if `target` holds anything, (unsupported) if a width is no
    multiple of 64, and as reading the source does.
    """
    config = ModelConfig.from_file(source / CONFIG_FILE)
    _check_widths(config, source)
    store = TensorStore.open(source)
    if target.exists() and any(target.iterdir()):
        raise NovaMeshError(Code.CONFLICT, f"{target}: is not empty", "name a new folder")
    target.mkdir(parents=True, exist_ok=True)
    files = _write_shards(target, _tensors(config, PlainSource(config, store)), shard_bytes)
    for companion in (CONFIG_FILE, *COMPANIONS):
        if (source / companion).is_file():
            shutil.copyfile(source / companion, target / companion)
            files.append(companion)
    return write_profile(target, name, "nf4", files)


def quantize(weight: Tensor) -> NF4Matrix:
    """Pack a matrix [..., N, K] with bitsandbytes; scales are rounded to float16 afterwards."""
    *rows, width = weight.shape
    flat = weight.float().contiguous()
    packed, state = bnb.quantize_4bit(flat, blocksize=BLOCK, quant_type="nf4")
    absmax = state.absmax.to(torch.float16).view(*rows, width // BLOCK)
    return NF4Matrix(packed.view(*rows, width // 2), absmax)


def _check_widths(config: ModelConfig, source: Path) -> None:
    widths = {
        "hidden_size": config.hidden_size,
        "the expert size": config.expert_size,
        "heads * head_dim": config.heads * config.head_dim,
    }
    for name, width in widths.items():
        if width % BLOCK:
            what = f"{source / CONFIG_FILE}: {name} is {width}, not a multiple of {BLOCK}"
            raise NovaMeshError(Code.UNSUPPORTED, what, "run this model unquantized")


def _tensors(config: ModelConfig, source: PlainSource) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the profile in order, made when asked for."""
    hidden = config.hidden_size
    yield EMBEDDING, source.embedding().half()
    for layer in range(config.layers):
        before_attention, before_moe = norm_names(layer)
        yield before_attention, source.vector(before_attention, hidden)
        yield from _packed(attention_name(layer, "qkv"), source.qkv(layer))
        yield from _packed(attention_name(layer, "o"), source.output(layer))
        yield before_moe, source.vector(before_moe, hidden)
        router = router_name(config, layer)
        yield router, source.vector(router, config.experts, hidden)
        yield from _packed(stack_name(config, layer, "gate_up"), source.gate_up(layer))
        yield from _packed(stack_name(config, layer, "down"), source.down(layer))
    yield NORM, source.vector(NORM, hidden)
    if not config.tie_embeddings:
        yield from _packed(HEAD, source.head())


def _packed(name: str, weight: Tensor) -> Iterator[tuple[str, Tensor]]:
    matrix = quantize(weight)
    yield name, matrix.packed
    yield name + ABSMAX, matrix.absmax


def _write_shards(
    target: Path, tensors: Iterator[tuple[str, Tensor]], shard_bytes: int
) -> list[str]:
    """Write tensors in files of about shard_bytes, and an index when there are several."""
    where: dict[str, str] = {}
    held = count = 0
    pending: dict[str, Tensor] = {}
    for name, tensor in tensors:
        if pending and held + tensor.nbytes > shard_bytes:
            count += 1
            where |= _write_shard(target, count, pending)
            pending, held = {}, 0
        pending[name] = tensor
        held += tensor.nbytes
    where |= _write_shard(target, count + 1, pending)
    if count == 0:
        (target / _shard_name(1)).rename(target / "model.safetensors")
        return ["model.safetensors"]
    (target / INDEX_FILE).write_text(json.dumps({"weight_map": where}, indent=2, sort_keys=True))
    return [*sorted(set(where.values())), INDEX_FILE]


def _write_shard(target: Path, number: int, tensors: dict[str, Tensor]) -> dict[str, str]:
    name = _shard_name(number)
    save_file(tensors, target / name, metadata={"format": "pt"})
    return dict.fromkeys(tensors, name)


def _shard_name(number: int) -> str:
    return f"model-{number:05d}.safetensors"
