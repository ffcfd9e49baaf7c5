"""The shelf: what is there, by name or path, and a damaged model hides no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from novamesh_engine.catalogue import BUILTINS
from novamesh_node.shelf import active_bytes, find_model, list_models
from novamesh_proto.errors import Code, NovaMeshError
from support.tiny_profile import save_tiny_profile


def test_built_in_models_come_first_and_a_shelf_may_be_missing(tmp_path: Path) -> None:
    entries = list_models(tmp_path / "models")
    assert [entry.name for entry in entries] == list(BUILTINS)
    assert all(entry.built_in for entry in entries)


def test_a_damaged_model_is_shown_with_its_fault(tmp_path: Path) -> None:
    good = save_tiny_profile(tmp_path / "good")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "novamesh.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    found = {entry.name: entry for entry in list_models(tmp_path) if not entry.built_in}
    assert set(found) == {"bad", "empty", "good"}
    assert found["good"].profile == good
    assert "novamesh.json" in found["bad"].fault


def test_a_model_is_found_by_name_and_by_path(tmp_path: Path) -> None:
    profile = save_tiny_profile(tmp_path / "shelf" / "tiny")
    assert find_model("tiny", tmp_path / "shelf") == profile
    assert find_model(str(tmp_path / "shelf" / "tiny"), tmp_path / "other") == profile


def test_what_is_not_there_says_what_to_do(tmp_path: Path) -> None:
    for name in ("nothing", "./nothing", str(tmp_path)):
        with pytest.raises(NovaMeshError) as caught:
            find_model(name, tmp_path)
        assert caught.value.code is Code.MODEL_NOT_FOUND
        assert "novamesh models ls" in caught.value.hint


def test_a_folder_without_a_manifest_is_named(tmp_path: Path) -> None:
    save_tiny_profile(tmp_path / "plain")
    (tmp_path / "plain" / "novamesh.json").unlink()
    with pytest.raises(NovaMeshError) as caught:
        find_model(str(tmp_path / "plain"), tmp_path)
    assert "novamesh.json" in caught.value.message


def test_active_bytes_are_the_active_share_of_the_weights(tmp_path: Path) -> None:
    profile = save_tiny_profile(tmp_path / "tiny")
    weights = (tmp_path / "tiny" / "model.safetensors").stat().st_size
    assert active_bytes(profile) == weights * profile.active_parameters // profile.parameters
