"""Our own family against transformers: nova is a Mixtral by other names, with a tied head."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from novamesh_engine.weights.load import load_model
from support.tiny_moe import Part, PlainKV, make_batch, relative, save_mixtral, save_nova

NAMES = {"mlp.": "block_sparse_moe.", "gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}


def test_nova_equals_a_mixtral_of_the_same_weights(tmp_path: Path) -> None:
    tensors = save_nova(tmp_path / "nova", seed=5, num_experts=8, num_key_value_heads=4)
    oracle = save_mixtral(
        tmp_path / "mixtral", num_local_experts=8, num_key_value_heads=4, intermediate_size=64,
        rope_theta=1e4, tie_word_embeddings=True,
    )  # fmt: skip
    renamed = {}
    for name, tensor in tensors.items():
        for ours, theirs in NAMES.items():
            name = name.replace(ours, theirs)
        renamed[name] = tensor
    save_file(renamed, tmp_path / "mixtral" / "model.safetensors", metadata={"format": "pt"})
    oracle = type(oracle).from_pretrained(tmp_path / "mixtral").eval()
    decoder = load_model(tmp_path / "nova").decoder
    tokens, kv = list(range(2, 41)), PlainKV(decoder.config)
    with torch.no_grad():
        wanted = oracle(torch.tensor([tokens])).logits[0]
    first = decoder.forward(make_batch(kv, [Part(0, 0, tokens[:20])]), kv)
    second = decoder.forward(make_batch(kv, [Part(0, 20, tokens[20:])]), kv)
    assert relative(torch.cat((first, second)), wanted) < 1e-5
