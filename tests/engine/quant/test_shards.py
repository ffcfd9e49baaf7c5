"""The files of a profile: where each byte is before one is written, and safetensors reads them."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from novamesh_engine.quant.shards import ALIGNMENT, Shard, ShardWriter, index_bytes, lay_out
from novamesh_engine.quant.tensors import Part, ProfileTensor
from novamesh_engine.weights.store import TensorFile

FORMS = st.sampled_from(["nf4", "float16", "float32"])
SHAPES = st.lists(st.integers(1, 5), min_size=0, max_size=2)


@st.composite
def plans(draw: st.DrawFn) -> list[ProfileTensor]:
    """Tensors of any size, the odd ones of biases and small norms among them."""
    plan = []
    for index in range(draw(st.integers(1, 12))):
        form = draw(FORMS)
        width = 64 * draw(st.integers(1, 3)) if form == "nf4" else draw(st.integers(1, 70))
        shape = (*draw(SHAPES), width)
        plan.append(ProfileTensor(f"t{index}", form, shape, (Part(f"p{index}", shape),)))
    return plan


def write(folder: Path, shard: Shard) -> str:
    """A shard whose bytes count up from each tensor's own start."""
    writer = ShardWriter(folder, shard)
    for tensor in shard.tensors:
        for stored in tensor.stored:
            data = bytes(i % 251 for i in range(stored.size))
            half = stored.size // 2
            writer.write(stored.name, half, data[half:])
            writer.write(stored.name, 0, data[:half])
    digest = writer.finish()
    writer.close()
    return digest


@given(plans(), st.integers(1, 4000))
def test_every_tensor_is_in_one_shard_and_packed_ones_are_aligned(
    plan: list[ProfileTensor], shard_bytes: int
) -> None:
    shards = lay_out(plan, shard_bytes)
    assert [tensor for shard in shards for tensor in shard.tensors] == plan
    for shard in shards:
        assert len(shard.header) % ALIGNMENT == 0
        stored = [each for tensor in shard.tensors for each in tensor.stored]
        assert {each.name for each in stored} == set(shard.offsets)
        assert len(shard.tensors) == 1 or sum(each.size for each in stored) <= shard_bytes
        for each in stored:
            width = {"U8": 1, "F16": 2, "F32": 4}[each.dtype]
            assert shard.offsets[each.name] % width == 0
            if each.size % ALIGNMENT == 0:
                assert shard.offsets[each.name] % ALIGNMENT == 0
    where = json.loads(index_bytes(shards))["weight_map"]
    assert where == {name: shard.name for shard in shards for name in shard.offsets}


@given(plans())
def test_safetensors_reads_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, plan: list[ProfileTensor]
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    (shard,) = lay_out(plan)
    digest = write(folder, shard)
    path = folder / "model.safetensors"
    assert path.stat().st_size == shard.size
    assert hashlib.sha256(path.read_bytes()).hexdigest() == digest
    found, ours = load_file(path), TensorFile.map(path)
    for tensor in plan:
        for stored in tensor.stored:
            wanted = bytes(i % 251 for i in range(stored.size))
            assert found[stored.name].flatten().view(torch.uint8).numpy().tobytes() == wanted
            assert ours.tensor(stored.name).shape == stored.shape
    with safe_open(path, "pt") as opened:
        assert opened.metadata() == {"format": "pt"}


def test_names_say_how_many_there_are() -> None:
    plan = [ProfileTensor(name, "float32", (8,), (Part(name, (8,)),)) for name in "abc"]
    assert [shard.name for shard in lay_out(plan)] == ["model.safetensors"]
    assert [shard.name for shard in lay_out(plan, 64)] == [
        "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
    ]  # fmt: skip


def test_a_file_has_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    (shard,) = lay_out([ProfileTensor("a", "float32", (8,), (Part("a", (8,)),))])
    writer = ShardWriter(tmp_path, shard)
    writer.write("a", 0, bytes(32))
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors.part"]
    writer.close()
    write(tmp_path, shard)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_full_disk_is_met_before_a_tensor_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shard,) = lay_out([ProfileTensor("a", "float32", (8,), (Part("a", (8,)),))])

    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space"):
        ShardWriter(tmp_path, shard)


def test_a_file_system_that_cannot_reserve_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shard,) = lay_out([ProfileTensor("a", "float32", (8,), (Part("a", (8,)),))])

    def unable(*_: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "posix_fallocate", unable)
    write(tmp_path, shard)
    assert set(load_file(tmp_path / "model.safetensors")) == {"a"}
