"""Conversion: bitsandbytes' bytes, the same however it went, and logits of those weights."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import bitsandbytes.functional as bnb
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from novamesh_engine.models.config import ModelConfig
from novamesh_engine.quant.checkpoint import Checkpoint, FolderCheckpoint
from novamesh_engine.quant.codebook import NF4Matrix, dequantize
from novamesh_engine.quant.convert import (
    STATE_FILE,
    Conversion,
    Step,
    convert,
    quantize,
)
from novamesh_engine.quant.tensors import profile_tensors
from novamesh_engine.weights.load import LoadedModel, load_model
from novamesh_engine.weights.store import TensorFile, TensorStore
from novamesh_proto.errors import Code, NovaMeshError
from support.tiny_moe import (
    Part,
    PlainKV,
    make_batch,
    nova_config,
    relative,
    save_mixtral,
    save_nova,
)

SMALL = 20_000  # bytes of a shard: several of them in a tiny model


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


def unpack(profile: Path, folder: Path) -> LoadedModel:
    """The plain folder whose weights are a profile's, dequantized and taken apart."""
    config, held = ModelConfig.from_file(profile / "config.json"), TensorStore.open(profile)
    tensors = {}
    for tensor in profile_tensors(config, ()):
        whole = held.files[tensor.name].tensor(tensor.name)
        if tensor.form == "nf4":
            scales = held.files[f"{tensor.name}.absmax"].tensor(f"{tensor.name}.absmax")
            whole = dequantize(NF4Matrix(whole, scales))
        at, flat = 0, whole.float().flatten()
        for part in tensor.parts:
            count = torch.Size(part.shape).numel()
            tensors[part.name] = flat[at : at + count].view(part.shape).clone()
            at += count
    folder.mkdir()
    shutil.copyfile(profile / "config.json", folder / "config.json")
    save_file(tensors, folder / "model.safetensors")
    return load_model(folder)


@pytest.mark.parametrize("family", ["nova", "mixtral"])
@pytest.mark.parametrize("shard_bytes", [1 << 30, SMALL])
def test_a_profile_runs_as_its_dequantized_weights(
    tmp_path: Path, family: str, shard_bytes: int
) -> None:
    source = tmp_path / "plain"
    (save_nova if family == "nova" else save_mixtral)(source, seed=3)
    profile = convert(source, tmp_path / "nf4", "tiny", shard_bytes)
    model = load_model(tmp_path / "nf4")
    assert model.profile == profile
    plain = unpack(tmp_path / "nf4", tmp_path / "unpacked")
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


def reshard(source: Path, target: Path, files: int) -> None:
    """The same tensors dealt out to so many files, so that experts and layers are split."""
    target.mkdir()
    shutil.copyfile(source / "config.json", target / "config.json")
    tensors = load_file(source / "model.safetensors")
    names = {f"part-{index}.safetensors": sorted(tensors)[index::files] for index in range(files)}
    for name, held in names.items():
        save_file({each: tensors[each] for each in held}, target / name)
    where = {each: name for name, held in names.items() for each in held}
    (target / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))


def test_how_a_checkpoint_is_cut_up_does_not_show(tmp_path: Path) -> None:
    save_nova(tmp_path / "whole", seed=5)
    reshard(tmp_path / "whole", tmp_path / "cut", 5)
    whole = convert(tmp_path / "whole", tmp_path / "a", "tiny")
    assert convert(tmp_path / "cut", tmp_path / "b", "tiny").digest == whole.digest


class Borrowed:
    """A checkpoint that notes what is asked of it, and is cut off at a file if it is told to be."""

    def __init__(self, folder: Path) -> None:
        self.inner = FolderCheckpoint.at(folder)
        self.folder, self.where, self.identity = folder, self.inner.where, self.inner.identity
        self.shape = self.inner.shape
        self.here: set[str] = set()
        self.gone: set[str] = set()
        self.most = 0

    def open(self, name: str) -> TensorFile:
        assert name not in self.gone, f"{name} was released"
        self.here.add(name)
        self.most = max(self.most, len(self.here))
        return self.inner.open(name)

    def release(self, name: str) -> None:
        self.here.discard(name)
        self.gone.add(name)


def test_a_file_is_released_when_its_last_tensor_is_through(tmp_path: Path) -> None:
    save_nova(tmp_path / "whole", num_hidden_layers=6)
    save_in_layers(tmp_path / "whole", tmp_path / "cut")
    checkpoint = Borrowed(tmp_path / "cut")
    conversion = Conversion(checkpoint, SMALL)
    sizes = dict.fromkeys(checkpoint.where.values(), 1_000_000)
    conversion.run(tmp_path / "nf4", "tiny")
    assert checkpoint.gone == set(checkpoint.where.values())
    assert checkpoint.most < len(checkpoint.gone)
    peak = conversion.disk_bytes(sizes)
    assert checkpoint.most * 1_000_000 <= peak <= (checkpoint.most + 1) * 1_000_000
    assert conversion.disk_bytes({}) == conversion.size


def save_in_layers(source: Path, target: Path) -> None:
    """The same tensors, a file a layer, as the Hub has them."""
    target.mkdir()
    shutil.copyfile(source / "config.json", target / "config.json")
    tensors = load_file(source / "model.safetensors")
    where = {}
    for name in tensors:
        layer = name.split(".")[2] if ".layers." in name else "x"
        where[name] = f"layer-{layer}.safetensors"
    for file in set(where.values()):
        held = {name: tensors[name] for name, place in where.items() if place == file}
        save_file(held, target / file)
    (target / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))


class KilledError(Exception):
    """The process ends here."""


def cut_off(conversion: Conversion, target: Path, at: int) -> bool:
    """Run until the report number `at`; whether it came so far."""
    reports = 0

    def report(_: Step) -> None:
        nonlocal reports
        reports += 1
        if reports == at:
            raise KilledError

    try:
        conversion.run(target, "tiny", report)
    except KilledError:
        return True
    return False


def marks(folder: Path) -> Mapping[str, tuple[int, int]]:
    """What would change if a file were made again."""
    stats = {path.name: path.stat() for path in folder.glob("*.safetensors")}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in stats.items()}


def test_wherever_it_is_cut_off_it_goes_on_and_the_bytes_are_the_same(tmp_path: Path) -> None:
    save_nova(tmp_path / "plain", seed=6)
    checkpoint: Checkpoint = FolderCheckpoint.at(tmp_path / "plain")
    wanted = Conversion(checkpoint, SMALL).run(tmp_path / "wanted", "tiny").digest
    target, at = tmp_path / "nf4", 0
    while cut_off(Conversion(checkpoint, SMALL), target, at := at + 1):
        whole = marks(target)
        assert not (target / "novamesh.json").exists()
        profile = Conversion(checkpoint, SMALL).run(target, "tiny")
        assert profile.digest == wanted
        assert whole.items() <= marks(target).items(), "what was whole is made again"
        assert not (target / STATE_FILE).exists()
        shutil.rmtree(target)
    assert at > 10


def test_a_shard_that_was_damaged_meanwhile_is_made_again(tmp_path: Path) -> None:
    save_nova(tmp_path / "plain", seed=7)
    checkpoint = FolderCheckpoint.at(tmp_path / "plain")
    wanted = Conversion(checkpoint, SMALL).run(tmp_path / "wanted", "tiny").digest
    assert cut_off(Conversion(checkpoint, SMALL), tmp_path / "nf4", 12)
    first = min((tmp_path / "nf4").glob("*.safetensors"))
    data = bytearray(first.read_bytes())
    data[-1] ^= 1
    first.write_bytes(data)
    assert Conversion(checkpoint, SMALL).run(tmp_path / "nf4", "tiny").digest == wanted


@pytest.mark.parametrize("state", ["", "[]", '{"shards": 1}', '{"identity": "x", "shards": {}}'])
def test_a_damaged_state_costs_work_and_nothing_else(tmp_path: Path, state: str) -> None:
    save_nova(tmp_path / "plain")
    wanted = convert(tmp_path / "plain", tmp_path / "wanted", "tiny").digest
    (tmp_path / "nf4").mkdir()
    (tmp_path / "nf4" / STATE_FILE).write_text(state)
    checkpoint = FolderCheckpoint.at(tmp_path / "plain")
    assert Conversion(checkpoint).run(tmp_path / "nf4", "tiny").digest == wanted


def test_what_is_left_of_another_checkpoint_is_not_used(tmp_path: Path) -> None:
    save_nova(tmp_path / "plain", seed=8)
    before = Conversion(FolderCheckpoint.at(tmp_path / "plain"), SMALL)
    assert cut_off(before, tmp_path / "nf4", 12)
    save_nova(tmp_path / "plain", seed=9)
    os.utime(tmp_path / "plain" / "model.safetensors", (1, 1))
    found = Conversion(FolderCheckpoint.at(tmp_path / "plain"), SMALL).run(tmp_path / "nf4", "tiny")
    assert found.digest == convert(tmp_path / "plain", tmp_path / "new", "tiny", SMALL).digest


def test_progress_counts_the_bytes_of_the_profile(tmp_path: Path) -> None:
    save_nova(tmp_path / "plain")
    conversion, steps = Conversion(FolderCheckpoint.at(tmp_path / "plain"), SMALL), []
    conversion.run(tmp_path / "nf4", "tiny", steps.append)
    written = [step.written for step in steps]
    assert written == sorted(written)
    assert steps[-1] == Step(len(conversion.shards), len(conversion.shards), written[-1],
                             conversion.size)  # fmt: skip
    assert written[-1] == conversion.size
    held = sum(path.stat().st_size for path in (tmp_path / "nf4").glob("*.safetensors"))
    assert held == conversion.size


def test_a_profile_is_small(tmp_path: Path) -> None:
    save_nova(tmp_path / "plain", hidden_size=128, moe_intermediate_size=64, num_experts=8)
    profile = convert(tmp_path / "plain", tmp_path / "nf4", "tiny")
    config = ModelConfig.from_file(tmp_path / "nf4" / "config.json")
    assert profile.parameters == config.parameters
    assert profile.size < config.parameters * 0.9


def test_a_width_that_no_block_fits_is_refused(tmp_path: Path) -> None:
    save_nova(tmp_path / "plain", moe_intermediate_size=32)
    with pytest.raises(NovaMeshError, match=r"down_proj is 32 wide") as caught:
        convert(tmp_path / "plain", tmp_path / "nf4", "tiny")
    assert caught.value.code is Code.UNSUPPORTED


@pytest.mark.parametrize(
    ("change", "message", "code"),
    [
        ({"model.norm.weight": None}, "tensor model.norm.weight is missing", Code.CORRUPT),
        ({"model.norm.weight": torch.ones(3)}, "has shape", Code.CORRUPT),
        ({"model.norm.weight": torch.full((64,), torch.nan)}, "no numbers", Code.CORRUPT),
        (
            {"model.norm.weight": torch.tensor([-torch.inf] + [1.0] * 63)},
            "no numbers",
            Code.CORRUPT,
        ),
        ({"model.embed_tokens.weight": torch.full((96, 64), 1e6)}, "too large", Code.UNSUPPORTED),
        ({"model.extra.weight": torch.ones(3)}, "is not part of nova", Code.UNSUPPORTED),
        ({"lm_head.weight": torch.ones(96, 64)}, "not the embedding", Code.UNSUPPORTED),
    ],
)
def test_what_cannot_be_kept_is_refused_by_name(
    tmp_path: Path, change: dict[str, Tensor | None], message: str, code: Code
) -> None:
    tensors = save_nova(tmp_path / "plain") | change
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, tmp_path / "plain" / "model.safetensors")
    with pytest.raises(NovaMeshError, match=message) as caught:
        convert(tmp_path / "plain", tmp_path / "nf4", "tiny")
    assert caught.value.code is code


def test_a_tied_head_that_is_the_embedding_is_left_out(tmp_path: Path) -> None:
    tensors = save_nova(tmp_path / "plain")
    wanted = convert(tmp_path / "plain", tmp_path / "a", "tiny").digest
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, tmp_path / "plain" / "model.safetensors")
    assert convert(tmp_path / "plain", tmp_path / "b", "tiny").digest == wanted


def test_a_head_dim_that_only_the_weights_tell_is_written_down(tmp_path: Path) -> None:
    save_nova(tmp_path / "plain", head_dim=32)
    raw = json.loads((tmp_path / "plain" / "config.json").read_text())
    del raw["head_dim"]
    (tmp_path / "plain" / "config.json").write_text(json.dumps(raw))
    profile = convert(tmp_path / "plain", tmp_path / "nf4", "tiny")
    config = ModelConfig.from_file(tmp_path / "nf4" / "config.json")
    assert (config.head_dim, config.head_dim_stated) == (32, True)
    assert profile.parameters == config.parameters
    tokens = list(range(3, 40))
    found = run(load_model(tmp_path / "nf4"), tokens)
    assert relative(found, run(load_model(tmp_path / "plain"), tokens)) < 0.5


def test_a_used_folder_is_left_alone(tmp_path: Path) -> None:
    save_nova(tmp_path / "plain")
    (tmp_path / "nf4").mkdir()
    (tmp_path / "nf4" / "mine").write_text("keep")
    with pytest.raises(NovaMeshError, match="is not empty") as caught:
        convert(tmp_path / "plain", tmp_path / "nf4", "tiny")
    assert caught.value.code is Code.CONFLICT
    assert json.loads((tmp_path / "plain" / "config.json").read_text())["model_type"] == "nova"


MEASURE = """
import sys
from pathlib import Path
import torch
from novamesh_engine.quant.convert import convert, quantize

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))

quantize(torch.ones(64, 64))
before = peak()
convert(Path(sys.argv[1]), Path(sys.argv[2]), "tiny")
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")
def test_a_stack_is_never_unpacked_as_a_whole(tmp_path: Path) -> None:
    """The larger stack has 134 MB as float32; the peak above what imports take is less."""
    save_big(tmp_path / "plain")
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, tmp_path / "plain", tmp_path / "nf4"],
        env={"PYTHONPATH": os.pathsep.join(sys.path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 110 << 20


def save_big(folder: Path) -> None:
    """One layer of 32 experts, as wide as real ones, in bfloat16."""
    raw = nova_config(
        num_hidden_layers=1, hidden_size=1024, num_experts=32, moe_intermediate_size=512
    )
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(raw))
    rng = torch.Generator().manual_seed(0)
    drawn = torch.randn(1 << 22, generator=rng).bfloat16()
    tensors = {
        part.name: drawn[: torch.Size(part.shape).numel()].view(part.shape).clone()
        for tensor in profile_tensors(ModelConfig.from_dict(raw), ())
        for part in tensor.parts
    }
    save_file(tensors, folder / "model.safetensors")
