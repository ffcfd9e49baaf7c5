"""Export: Hugging Face names and shapes, an NF4 profile that loads, the same bytes twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from novamesh_engine.quant.profile import read_profile, verify
from novamesh_engine.recipe.export import export, plain_tensors
from novamesh_engine.recipe.network import Network
from novamesh_engine.recipe.preset import PRESETS
from novamesh_engine.recipe.vocabulary import train_tokenizer
from novamesh_proto.errors import NovaMeshError

SMOKE = PRESETS["smoke"]


def make_network() -> Network:
    torch.manual_seed(5)
    return Network(SMOKE)


def test_fused_matrices_come_apart() -> None:
    network = make_network()
    tensors = plain_tensors(network)
    prefix = "model.layers.1"
    assert tensors[f"{prefix}.self_attn.k_proj.weight"].shape == (64, 64)
    assert tensors[f"{prefix}.mlp.gate.weight"].shape == (4, 64)
    for kind, shape in (("gate", (64, 64)), ("up", (64, 64)), ("down", (64, 64))):
        assert tensors[f"{prefix}.mlp.experts.3.{kind}_proj.weight"].shape == shape
    down = network.get_parameter("layers.1.down").detach()
    assert torch.equal(tensors[f"{prefix}.mlp.experts.2.down_proj.weight"], down[:, 128:192])
    total = sum(tensor.numel() for tensor in tensors.values())
    assert total == sum(value.numel() for value in network.parameters())


def test_the_profile_is_whole_and_the_same_twice(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(SMOKE, 0)
    first = export(make_network(), tokenizer, tmp_path / "a")
    second = export(make_network(), tokenizer, tmp_path / "b")
    assert first.digest == second.digest
    assert verify(read_profile(tmp_path / "a" / "nova-smoke")).name == "nova-smoke"
    assert first.file_names == {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    config = json.loads((tmp_path / "a" / "nova-smoke" / "config.json").read_text())
    assert (config["model_type"], config["num_experts_per_tok"]) == ("nova", 2)
    assert config["eos_token_id"] == tokenizer.token_to_id("<|end|>")
    plain = load_file(tmp_path / "a" / "plain" / "model.safetensors")
    assert plain["model.embed_tokens.weight"].dtype == torch.float32


def test_a_profile_is_never_overwritten(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(SMOKE, 0)
    export(make_network(), tokenizer, tmp_path)
    with pytest.raises(NovaMeshError, match="not empty"):
        export(make_network(), tokenizer, tmp_path)
