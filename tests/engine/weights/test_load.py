"""Loading: sharded or not, plain or packed, and what a wrong folder is told."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from novamesh_engine.models.moe import MoE
from novamesh_engine.quant.codebook import NF4Matrix
from novamesh_engine.quant.convert import convert
from novamesh_engine.quant.profile import read_profile, write_profile
from novamesh_engine.weights.load import LoadedModel, load_model
from novamesh_proto.errors import Code, NovaMeshError
from support.tiny_moe import Part, PlainKV, make_batch, relative, save_mixtral, save_nova


def run(model: LoadedModel) -> Tensor:
    kv = PlainKV(model.config)
    return model.decoder.forward(make_batch(kv, [Part(0, 0, range(30))]), kv)


def test_shards_give_the_same_model(tmp_path: Path) -> None:
    save_mixtral(tmp_path / "whole", seed=1)
    save_mixtral(tmp_path / "parts", seed=1, shard="100KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 2
    assert torch.equal(run(load_model(tmp_path / "whole")), run(load_model(tmp_path / "parts")))


def test_bfloat16_runs_as_its_float32_values(tmp_path: Path) -> None:
    tensors = save_nova(tmp_path, seed=2)
    path = tmp_path / "model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in tensors.items()}, path)
    narrow = run(load_model(tmp_path))
    save_file({name: tensor.bfloat16().float() for name, tensor in tensors.items()}, path)
    assert torch.equal(narrow, run(load_model(str(tmp_path))))


def test_a_plain_profile_runs_as_its_folder(tmp_path: Path) -> None:
    save_nova(tmp_path, seed=3)
    plain = load_model(tmp_path)
    assert plain.profile is None
    profile = write_profile(tmp_path, "tiny", "none", ["config.json", "model.safetensors"])
    model = load_model(tmp_path)
    assert model.profile == profile
    assert torch.equal(run(model), run(plain))


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    save_nova(tmp_path / "plain", seed=4)
    convert(tmp_path / "plain", tmp_path / "nf4", "tiny")
    return tmp_path / "nf4"


def mapped_at(address: int) -> tuple[str, int]:
    """The file that this process has mapped at an address, and the place in the file."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, offset, _, _, *path = line.split(maxsplit=5)
        first, last = (int(end, 16) for end in span.split("-"))
        if first <= address < last:
            return "".join(path), int(offset, 16) + address - first
    raise AssertionError(f"nothing is mapped at {address:#x}")


def test_packed_weights_stay_views_of_the_file(packed: Path) -> None:
    """Where the kernels read is the file itself, mapped: no copy, page by page as it is used."""
    layer = load_model(packed).decoder.layers[1]
    moe = layer.mlp
    assert isinstance(moe, MoE)
    assert (moe.gate_up.shape, moe.down.shape) == ((4, 128, 64), (4, 64, 64))
    matrices = (layer.attention.qkv.weight, layer.attention.output.weight, moe.gate_up, moe.down)
    for matrix in matrices:
        assert isinstance(matrix, NF4Matrix)
        for tensor in (matrix.packed, matrix.absmax):
            path, place = mapped_at(tensor.data_ptr())
            held = Path(path).read_bytes()[place : place + tensor.nbytes]
            assert Path(path).parent == packed
            assert tensor.view(torch.uint8).flatten().tolist() == list(held)


def test_a_flipped_bit_is_found_on_load(packed: Path) -> None:
    path = packed / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(NovaMeshError, match=r"model\.safetensors: is not the file") as caught:
        load_model(packed)
    assert caught.value.code is Code.CORRUPT
    load_model(packed, verify=False)  # who has just verified says so


def test_a_file_beside_the_profile_does_not_count(packed: Path) -> None:
    wanted = run(load_model(packed))
    where = {"model.norm.weight": "evil.safetensors"}
    save_file({"model.norm.weight": torch.zeros(64)}, packed / "evil.safetensors")
    (packed / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    assert torch.equal(run(load_model(packed)), wanted)


def test_a_profile_whose_tensor_has_another_shape_is_named(packed: Path) -> None:
    path = packed / "model.safetensors"
    tensors = load_file(path)
    name = "model.layers.1.mlp.experts.down_proj"
    save_file(tensors | {name: tensors[name][:3].contiguous()}, path)
    write_profile(packed, "tiny", "nf4", read_profile(packed).file_names)
    with pytest.raises(NovaMeshError, match=f"{name} has shape") as caught:
        load_model(packed)
    assert str(path) in caught.value.message


def test_a_profile_whose_width_no_block_fits_is_refused(packed: Path) -> None:
    raw = json.loads((packed / "config.json").read_text()) | {"moe_intermediate_size": 96}
    (packed / "config.json").write_text(json.dumps(raw))
    path = packed / "model.safetensors"
    tensors = load_file(path)
    for name in [name for name in tensors if "gate_up" in name]:
        rows = tensors[name].shape[2]
        tensors[name] = tensors[name].repeat(1, 2, 1)[:, :192].reshape(4, 192, rows).contiguous()
    save_file(tensors, path)
    write_profile(packed, "tiny", "nf4", read_profile(packed).file_names)
    with pytest.raises(NovaMeshError, match=r"down_proj is 96 wide") as caught:
        load_model(packed)
    assert caught.value.code is Code.UNSUPPORTED


@pytest.mark.parametrize(
    "name", ["model.norm.weight", "model.layers.1.mlp.experts.3.up_proj.weight"]
)
def test_a_missing_tensor_is_named(tmp_path: Path, name: str) -> None:
    tensors = save_nova(tmp_path)
    del tensors[name]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(NovaMeshError, match=f"tensor {name} is missing") as caught:
        load_model(tmp_path)
    assert caught.value.code is Code.CORRUPT
    assert str(tmp_path) in caught.value.message


def test_a_tensor_of_another_shape_or_type_is_named(tmp_path: Path) -> None:
    tensors, path = save_nova(tmp_path), tmp_path / "model.safetensors"
    name = "model.layers.0.self_attn.k_proj.weight"
    save_file(tensors | {name: tensors[name].T.contiguous()}, path)
    with pytest.raises(NovaMeshError, match=f"{path}: tensor {name} has shape"):
        load_model(tmp_path)
    save_file(tensors | {name: tensors[name].to(torch.int8)}, path)
    with pytest.raises(NovaMeshError, match=f"tensor {name} is int8"):
        load_model(tmp_path)


def test_no_folder_says_what_to_name(tmp_path: Path) -> None:
    with pytest.raises(NovaMeshError, match=r"config\.json: cannot be read") as caught:
        load_model(tmp_path / "nothing")
    assert caught.value.code is Code.MODEL_NOT_FOUND
    assert "config.json" in caught.value.hint


def test_an_nf4_model_is_near_its_plain_one(packed: Path) -> None:
    plain = run(load_model(packed.parent / "plain"))
    assert 0.01 < relative(run(load_model(packed)), plain) < 0.5


def test_a_config_that_claims_too_much_costs_no_memory(tmp_path: Path) -> None:
    save_nova(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    huge = raw | {"num_experts": 4096, "moe_intermediate_size": 1 << 18}
    (tmp_path / "config.json").write_text(json.dumps(huge))
    with pytest.raises(NovaMeshError, match="has shape"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(raw | {"num_hidden_layers": 1024}))
    with pytest.raises(NovaMeshError, match=r"layers\.2\.[a-z_.]+ is missing"):
        load_model(tmp_path)


def test_no_wanted_row_gives_no_logits(tmp_path: Path) -> None:
    save_nova(tmp_path)
    model = load_model(tmp_path)
    kv = PlainKV(model.config)
    batch = make_batch(kv, [Part(0, 0, range(3))])
    none = dataclasses.replace(batch, logit_rows=batch.logit_rows[:0])
    assert model.decoder.forward(none, kv).shape == (0, 96)


def test_a_tensor_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    tensors = save_nova(tmp_path)
    strange = {"model.layers.0.self_attn.sinks": torch.zeros(4)}
    save_file(tensors | strange, tmp_path / "model.safetensors")
    with pytest.raises(NovaMeshError, match=r"self_attn\.sinks is not part of nova") as caught:
        load_model(tmp_path)
    assert caught.value.code is Code.UNSUPPORTED
    derived = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)}
    save_file(tensors | derived, tmp_path / "model.safetensors")
    load_model(tmp_path)


def test_a_tied_head_may_be_there_if_it_is_the_embedding(tmp_path: Path) -> None:
    tensors = save_nova(tmp_path)
    embedding = tensors["model.embed_tokens.weight"]
    for head in (embedding.clone(), embedding + 1):
        save_file(tensors | {"lm_head.weight": head}, tmp_path / "model.safetensors")
        if torch.equal(head, embedding):
            load_model(tmp_path)
        else:
            with pytest.raises(NovaMeshError, match="is not the embedding"):
                load_model(tmp_path)


@pytest.mark.parametrize("quantized", [False, True])
def test_a_head_dim_that_is_not_stated_follows_from_the_weights(
    tmp_path: Path, quantized: bool
) -> None:
    save_nova(tmp_path / "plain", seed=6, head_dim=32)
    folder = tmp_path / "plain"
    if quantized:
        folder = convert(folder, tmp_path / "nf4", "tiny").path
    wanted = run(load_model(folder))
    path = folder / "config.json"
    raw = json.loads(path.read_text())
    del raw["head_dim"]
    path.write_text(json.dumps(raw))
    model = load_model(folder, verify=False)
    assert model.config.head_dim == 32
    assert torch.equal(run(model), wanted)
    path.write_text(json.dumps(raw | {"head_dim": 16}))
    with pytest.raises(NovaMeshError, match=r"q(kv)?_proj\.weight has shape"):
        load_model(folder, verify=False)
