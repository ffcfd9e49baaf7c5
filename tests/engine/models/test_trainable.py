"""The engine runs what the recipe trains: its network, exported with random weights, bound 1e-5."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from novamesh_engine.weights.load import load_model
from support.tiny_moe import Part, PlainKV, make_batch, relative

export = pytest.importorskip("novamesh_engine.recipe.export")
network = pytest.importorskip("novamesh_engine.recipe.network")
preset = pytest.importorskip("novamesh_engine.recipe.preset")


class EveryToken:
    """As much of a tokenizer as a config needs."""

    def token_to_id(self, token: str) -> int:
        return 1


@pytest.mark.parametrize("name", ["pico", "smoke"])
def test_logits_equal_those_of_the_trainable_model(tmp_path: Path, name: str) -> None:
    torch.manual_seed(3)
    trained = network.Network(preset.find_preset(name))
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.normal_(0.0, 0.1)
    save_file(export.plain_tensors(trained), tmp_path / "model.safetensors")
    config = export.model_config(trained.preset, EveryToken())
    (tmp_path / "config.json").write_text(json.dumps(config))
    decoder, tokens = load_model(tmp_path).decoder, list(range(2, 60))
    kv = PlainKV(decoder.config)
    with torch.no_grad():
        wanted = trained(torch.tensor([tokens]))[0][0]
    parts = [Part(0, 0, tokens[:50]), Part(0, 50, tokens[50:])]
    found = torch.cat([decoder.forward(make_batch(kv, [part]), kv) for part in parts])
    assert relative(found, wanted) < 1e-5
