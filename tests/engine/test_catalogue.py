"""Names and paths of models."""

from __future__ import annotations

from pathlib import Path

import pytest

import novamesh_engine
from novamesh_engine.catalogue import (
    BUILTINS,
    CATALOGUE,
    choose_entry,
    find_entry,
    find_path,
    locate,
)
from novamesh_engine.models.config import ModelConfig
from novamesh_engine.quant.shards import lay_out
from novamesh_engine.quant.tensors import profile_tensors
from novamesh_engine.weights.footprint import Footprint
from novamesh_proto.errors import Code, NovaMeshError
from support.known_models import CATALOGUED
from support.tiny_moe import save_nova


def test_a_path_is_itself(tmp_path: Path) -> None:
    save_nova(tmp_path)
    assert locate(tmp_path) == locate(str(tmp_path)) == tmp_path


def test_a_built_in_name_is_a_folder_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "builtin" / BUILTINS[0]
    save_nova(folder)
    monkeypatch.setattr(novamesh_engine, "__path__", [str(tmp_path / "other"), str(tmp_path)])
    assert locate(BUILTINS[0]) == folder


@pytest.mark.parametrize("name", ["nova-giant", "nova-pico"])
def test_what_is_missing_says_what_there_is(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(novamesh_engine, "__path__", [str(tmp_path)])
    with pytest.raises(NovaMeshError, match=f"no model {name}") as refused:
        locate(name)
    assert refused.value.code is Code.MODEL_NOT_FOUND
    assert "nova-pico" in refused.value.hint


@pytest.mark.parametrize("there", ["folder", "file", "", "nosuch"])
def test_what_is_wrong_with_a_path_is_said(
    there: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "config.json").write_text("{}")  # no name at all must not mean this folder
    with pytest.raises(NovaMeshError) as refused:
        locate(there)
    assert refused.value.code is Code.MODEL_NOT_FOUND
    assert (
        refused.value.message
        == {
            "folder": "there is no model in the folder folder: it has no config.json",
            "file": "file is a file, and a model is a folder",
            "": "no model is named",
            "nosuch": "there is no model nosuch in .",
        }[there]
    )
    assert "pulled models:  novamesh models ls" in refused.value.hint


@pytest.mark.parametrize("name", ["~nosuchuser/x", "x" * 300, "a\0b", "loop"])
def test_a_path_that_cannot_be_is_a_model_that_is_not_there(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    for attempt in (lambda: locate(name), lambda: find_path(name, "name another")):
        with pytest.raises(NovaMeshError, match="there is no model") as refused:
            attempt()
        assert refused.value.code is Code.MODEL_NOT_FOUND
        assert len(refused.value.message) < 200
    assert refused.value.hint == "name another"


def test_a_path_need_not_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_path("~/nothing", "") == tmp_path / "nothing"
    assert find_path(tmp_path / "nothing" / "x", "") == tmp_path / "nothing" / "x"


def test_what_an_entry_says_is_what_its_published_config_makes() -> None:
    """Family, counts and context, and the size of the profile that a pull would make."""
    assert set(CATALOGUED) == {entry.name for entry in CATALOGUE}
    for entry in CATALOGUE:
        config = ModelConfig.from_dict(CATALOGUED[entry.name])
        assert (entry.model_type, entry.max_context) == (config.model_type, config.max_context)
        assert entry.parameters == pytest.approx(config.parameters, rel=1e-3)
        assert entry.active_parameters == pytest.approx(config.active_parameters, rel=1e-2)
        size = sum(shard.size for shard in lay_out(profile_tensors(config, ())))
        assert entry.footprint == Footprint.of(config)
        assert entry.profile_bytes == pytest.approx(size, rel=1e-4)  # files have headers
        assert entry.profile_bytes < entry.memory_gb * 10**9 * 0.75


def test_a_size_of_memory_has_at_most_one_first_choice() -> None:
    tiers = [entry.memory_gb for entry in CATALOGUE if entry.default]
    assert len(set(tiers)) == len(tiers)
    assert choose_entry(10**9) is None
    for entry in CATALOGUE:
        assert find_entry(entry.name) == entry
        if entry.default:
            assert choose_entry(entry.memory_gb * 10**9) == entry
    assert find_entry("nova-giant") is None
