"""Names and paths of models."""

from __future__ import annotations

from pathlib import Path

import pytest

import novamesh_engine
from novamesh_engine.catalogue import BUILTINS, locate
from novamesh_proto.errors import Code, NovaMeshError
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
