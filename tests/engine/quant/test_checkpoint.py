"""A checkpoint in a folder: what is in it by name, and an identity that changes with its bytes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from novamesh_engine.quant.checkpoint import FolderCheckpoint
from novamesh_proto.errors import NovaMeshError
from support.tiny_moe import save_nova


def test_tensors_files_and_shapes_by_name(tmp_path: Path) -> None:
    tensors = save_nova(tmp_path)
    checkpoint = FolderCheckpoint.at(tmp_path)
    assert checkpoint.where == dict.fromkeys(tensors, "model.safetensors")
    assert all(checkpoint.shape(name) == tuple(each.shape) for name, each in tensors.items())
    assert checkpoint.shape("model.other") is None
    file = checkpoint.open("model.safetensors")
    checkpoint.release("model.safetensors")
    assert checkpoint.open("model.safetensors") is file
    assert (tmp_path / "model.safetensors").exists()


def test_the_identity_follows_the_files(tmp_path: Path) -> None:
    save_nova(tmp_path / "a")
    first = FolderCheckpoint.at(tmp_path / "a").identity
    assert FolderCheckpoint.at(tmp_path / "a").identity == first
    os.utime(tmp_path / "a" / "model.safetensors", (1, 1))
    assert FolderCheckpoint.at(tmp_path / "a").identity != first


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NovaMeshError):
        FolderCheckpoint.at(tmp_path)
