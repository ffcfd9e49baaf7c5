"""The shelf: what is there, by name or path, and a damaged model hides no other."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest

from novamesh_engine.catalogue import BUILTINS
from novamesh_node.shelf import (
    active_bytes,
    find_missing,
    find_model,
    list_models,
    remove_model,
)
from novamesh_node.workspace import Workspace, lock
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
    folder = tmp_path / "it's plain"
    save_tiny_profile(folder)
    (folder / "novamesh.json").unlink()
    with pytest.raises(NovaMeshError) as caught:
        find_model(str(folder), tmp_path)
    assert "novamesh.json" in caught.value.message
    typed = shlex.split(caught.value.hint.removeprefix("make one:"))
    assert typed == ["novamesh", "models", "pull", str(folder)]


def test_active_bytes_are_the_active_share_of_the_weights(tmp_path: Path) -> None:
    profile = save_tiny_profile(tmp_path / "tiny")
    weights = (tmp_path / "tiny" / "model.safetensors").stat().st_size
    assert active_bytes(profile) == weights * profile.active_parameters // profile.parameters


def test_a_pull_that_was_cut_off_is_listed_and_can_be_removed(tmp_path: Path) -> None:
    work = Workspace.of(tmp_path, "half")
    with work.locked():
        work.begin({"folder": "/somewhere"})
        work.profile.mkdir()
        (work.profile / "model.safetensors.part").write_bytes(bytes(3_000_000))
    entry = list_models(tmp_path)[-1]
    assert (entry.name, entry.profile) == ("half", None)
    assert "unfinished, 3 MB so far" in entry.fault
    assert remove_model("half", tmp_path, ()) >= 3_000_000
    assert not list(tmp_path.iterdir())


def test_a_pull_that_another_process_is_at_is_listed_as_such(tmp_path: Path) -> None:
    work = Workspace.of(tmp_path, "half")
    with work.locked():
        work.begin({"folder": "/somewhere"})
        fault = list_models(tmp_path)[-1].fault
    assert fault.startswith(f"under way by process {os.getpid()}, ")
    assert "pull it again" not in fault
    assert "pull it again" in list_models(tmp_path)[-1].fault


@pytest.mark.parametrize("name", ["~nosuchuser/x", "~nosuchuser", "x" * 300, f"./{'x' * 300}", ""])
def test_a_name_that_nothing_can_have_is_not_there(tmp_path: Path, name: str) -> None:
    save_tiny_profile(tmp_path)  # no name at all must not mean the shelf
    with pytest.raises(NovaMeshError, match="there is no model") as caught:
        find_model(name, tmp_path)
    assert caught.value.code is Code.MODEL_NOT_FOUND
    assert "novamesh models ls" in caught.value.hint


def test_a_model_is_removed_and_its_size_told(tmp_path: Path) -> None:
    profile = save_tiny_profile(tmp_path / "tiny")
    save_tiny_profile(tmp_path / "other")
    assert remove_model("tiny", tmp_path, ()) >= profile.size
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
    with pytest.raises(NovaMeshError) as caught:
        remove_model("tiny", tmp_path, ())
    assert caught.value.code is Code.MODEL_NOT_FOUND


def test_what_is_built_in_served_or_under_way_stays(tmp_path: Path) -> None:
    profile = save_tiny_profile(tmp_path / "tiny")
    with pytest.raises(NovaMeshError, match="built in") as built_in:
        remove_model(BUILTINS[0], tmp_path, ())
    with pytest.raises(NovaMeshError, match="a node of this machine serves tiny") as served:
        remove_model("tiny", tmp_path, [profile.digest_text])
    with (
        lock(Workspace.of(tmp_path, "tiny").folder, ""),
        pytest.raises(NovaMeshError, match="works on tiny") as under_way,
    ):
        remove_model("tiny", tmp_path, ())
    with pytest.raises(NovaMeshError) as outside:
        remove_model("../tiny", tmp_path / "shelf", ())
    codes = [each.value.code for each in (built_in, served, under_way, outside)]
    assert codes == [Code.POLICY, Code.CONFLICT, Code.CONFLICT, Code.BAD_REQUEST]
    assert find_model("tiny", tmp_path) == profile


def test_missing_and_cut_off_files_are_seen_without_reading_any(tmp_path: Path) -> None:
    profile = save_tiny_profile(tmp_path / "tiny")
    assert not find_missing(profile)
    (tmp_path / "tiny" / "model.safetensors").write_bytes(b"cut off")
    (tmp_path / "tiny" / "config.json").unlink()
    codes = {name: error.code for name, error in find_missing(profile).items()}
    assert codes == {"config.json": Code.NOT_FOUND, "model.safetensors": Code.CORRUPT}
