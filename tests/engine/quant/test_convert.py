"""Conversion: bitsandbytes' bytes, the same every time, and logits of the dequantized weights."""

from __future__ import annotations

import json
from pathlib import Path

import bitsandbytes.functional as bnb
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from novamesh_engine.models.config import ModelConfig
from novamesh_engine.quant.codebook import NF4Matrix, dequantize
from novamesh_engine.quant.convert import convert, quantize
from novamesh_engine.weights.load import LoadedModel, load_model
from novamesh_proto.errors import Code, NovaMeshError
from support.tiny_moe import Part, PlainKV, make_batch, relative, save_mixtral, save_nova


@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 2**31), st.floats(1e-3, 1e3))
@settings(deadline=None)
def test_bytes_and_values_are_those_of_bitsandbytes(
    rows: int, blocks: int, seed: int, size: float
) -> None:
    rng = torch.Generator().manual_seed(seed)
    weight = torch.randn((rows, blocks * 64), generator=rng) * size
    ours = quantize(weight)
    packed, state = bnb.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    assert torch.equal(ours.packed.flatten(), packed.flatten())
    assert torch.equal(ours.absmax.flatten(), state.absmax.half())
    state.absmax = ours.absmax.flatten().float()
    assert torch.equal(dequantize(ours), bnb.dequantize_4bit(packed, state))


def test_a_stack_packs_as_its_matrices_do() -> None:
    stack = torch.randn((3, 8, 128), generator=torch.Generator().manual_seed(1))
    whole = quantize(stack)
    assert whole.shape == (3, 8, 128)
    for index in range(3):
        alone = quantize(stack[index])
        assert torch.equal(whole[index].packed, alone.packed)
        assert torch.equal(whole[index].absmax, alone.absmax)
    assert torch.equal(dequantize(whole.to("cpu"))[1], dequantize(whole[1]))


def run(model: LoadedModel, tokens: list[int]) -> Tensor:
    kv = PlainKV(model.config)
    return model.decoder.forward(make_batch(kv, [Part(0, 0, tokens)]), kv)


def unpack(model: LoadedModel, folder: Path, source: Path) -> LoadedModel:
    """The plain folder whose weights are a profile's, dequantized."""
    config = model.config
    tensors = {"model.embed_tokens.weight": model.decoder.embedding.float()}
    for index, layer in enumerate(model.decoder.layers):
        name = f"model.layers.{index}."
        tensors[name + "input_layernorm.weight"] = layer.attention_norm.weight
        tensors[name + "post_attention_layernorm.weight"] = layer.moe_norm.weight
        rows = [config.heads * config.head_dim] + [config.kv_heads * config.head_dim] * 2
        query, key, value = _wide(layer.attention.qkv.weight).split(rows)
        output = _wide(layer.attention.output.weight)
        for part, weight in zip("qkvo", (query, key, value, output), strict=True):
            tensors[f"{name}self_attn.{part}_proj.weight"] = weight
        moe, traits = name + config.traits.moe, config.traits
        tensors[moe + ".gate.weight"] = layer.moe.router
        gate_up, down = _wide(layer.moe.gate_up), _wide(layer.moe.down)
        for expert in range(config.experts):
            gate, up = gate_up[expert].chunk(2)
            for part, weight in ((traits.gate, gate), (traits.up, up), (traits.down, down[expert])):
                tensors[f"{moe}.experts.{expert}.{part}.weight"] = weight
    tensors["model.norm.weight"] = model.decoder.norm.weight
    if not config.tie_embeddings:
        tensors["lm_head.weight"] = _wide(model.decoder.head.weight)
    folder.mkdir()
    (folder / "config.json").write_bytes((source / "config.json").read_bytes())
    save_file({key: value.contiguous().clone() for key, value in tensors.items()},
              folder / "model.safetensors")  # fmt: skip
    return load_model(folder)


def _wide(weight: Tensor | NF4Matrix) -> Tensor:
    assert isinstance(weight, NF4Matrix)
    return dequantize(weight)


@pytest.mark.parametrize("family", ["nova", "mixtral"])
@pytest.mark.parametrize("shard_bytes", [1 << 30, 20_000])
def test_a_profile_runs_as_its_dequantized_weights(
    tmp_path: Path, family: str, shard_bytes: int
) -> None:
    source = tmp_path / "plain"
    (save_nova if family == "nova" else save_mixtral)(source, seed=3)
    profile = convert(source, tmp_path / "nf4", "tiny", shard_bytes)
    model = load_model(tmp_path / "nf4")
    assert model.profile == profile
    assert isinstance(model.decoder.layers[0].moe.gate_up, NF4Matrix)
    plain = unpack(model, tmp_path / "unpacked", source)
    tokens = list(range(3, 40))
    assert relative(run(model, tokens), run(plain, tokens)) < 1e-5
    assert relative(run(model, tokens), run(load_model(source), tokens)) < 0.5


def test_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    save_nova(tmp_path / "plain", seed=4)
    (tmp_path / "plain" / "tokenizer.json").write_text("{}")
    first = convert(tmp_path / "plain", tmp_path / "a", "tiny")
    second = convert(tmp_path / "plain", tmp_path / "b", "tiny")
    assert first.digest == second.digest
    assert first.file_names == {"config.json", "model.safetensors", "tokenizer.json"}


def test_a_profile_is_small(tmp_path: Path) -> None:
    save_nova(tmp_path / "plain", hidden_size=128, moe_intermediate_size=64, num_experts=8)
    profile = convert(tmp_path / "plain", tmp_path / "nf4", "tiny")
    config = ModelConfig.from_file(tmp_path / "nf4" / "config.json")
    assert profile.parameters == config.parameters
    assert profile.size < config.parameters * 0.9


def test_a_width_that_no_block_fits_is_refused(tmp_path: Path) -> None:
    save_nova(tmp_path / "plain", moe_intermediate_size=32)
    with pytest.raises(NovaMeshError, match=r"config\.json: the expert size is 32") as caught:
        convert(tmp_path / "plain", tmp_path / "nf4", "tiny")
    assert caught.value.code is Code.UNSUPPORTED


def test_a_used_folder_is_left_alone(tmp_path: Path) -> None:
    save_nova(tmp_path / "plain")
    (tmp_path / "nf4").mkdir()
    (tmp_path / "nf4" / "mine").write_text("keep")
    with pytest.raises(NovaMeshError, match="is not empty") as caught:
        convert(tmp_path / "plain", tmp_path / "nf4", "tiny")
    assert caught.value.code is Code.CONFLICT
    assert json.loads((tmp_path / "plain" / "config.json").read_text())["model_type"] == "nova"
