"""Private files: whole, 0600, refused where others can read them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from novamesh.private_file import read_private, write_private
from novamesh_proto.errors import Code, NovaMeshError


def test_written_file_is_whole_and_private(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    write_private(path, b"content")
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert read_private(path, 100) == b"content"
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


def test_replacing_is_a_choice(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_private(path, b"old")
    write_private(path, b"new")
    with pytest.raises(NovaMeshError) as caught:
        write_private(path, b"newer", replace=False)
    assert caught.value.code is Code.CONFLICT
    assert read_private(path, 100) == b"new"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_loose_permissions_are_refused_with_the_command_that_mends_them(
    tmp_path: Path, mode: int
) -> None:
    path = tmp_path / "file"
    write_private(path, b"secret")
    path.chmod(mode)
    with pytest.raises(NovaMeshError) as caught:
        read_private(path, 100)
    assert caught.value.code is Code.BAD_KEY
    assert caught.value.hint == f"chmod 600 {path}"
    assert f"{mode:03o}" in caught.value.message


def test_missing_and_large_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NovaMeshError) as caught:
        read_private(tmp_path / "none", 100)
    assert caught.value.code is Code.NOT_FOUND
    write_private(tmp_path / "large", b"x" * 101)
    with pytest.raises(NovaMeshError) as caught:
        read_private(tmp_path / "large", 100)
    assert caught.value.code is Code.TOO_LARGE


def test_unwritable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "a-file").write_text("")
    with pytest.raises(NovaMeshError) as caught:
        write_private(tmp_path / "a-file" / "below", b"")
    assert caught.value.code is Code.STORAGE
    assert str(tmp_path) in caught.value.message
    assert os.listdir(tmp_path) == ["a-file"]
