"""The coordinator's key: made once, for its owner's eyes only."""

from __future__ import annotations

from pathlib import Path

import pytest

from novamesh_coordinator.key_file import create_key, load_key, write_text
from novamesh_proto.errors import Code, NovaMeshError


def test_a_key_is_made_once_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "coordinator.key"
    key = create_key(path)
    assert load_key(path).node_id == key.node_id
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    with pytest.raises(NovaMeshError) as refused:
        create_key(path)
    assert refused.value.code is Code.CONFLICT
    assert load_key(path).node_id == key.node_id


@pytest.mark.parametrize(
    ("text", "mode", "code"),
    [
        ("00" * 31, 0o600, Code.BAD_KEY),
        ("zz" * 32, 0o600, Code.BAD_KEY),
        ("\u00e9", 0o600, Code.BAD_KEY),
        ("00" * 32, 0o640, Code.BAD_KEY),
        ("00" * 32, 0o604, Code.BAD_KEY),
    ],
)
def test_a_key_file_that_is_wrong_is_refused(
    tmp_path: Path, text: str, mode: int, code: Code
) -> None:
    path = tmp_path / "coordinator.key"
    path.write_text(text)
    path.chmod(mode)
    with pytest.raises(NovaMeshError) as refused:
        load_key(path)
    assert refused.value.code is code
    assert refused.value.hint


def test_without_a_key_the_next_command_is_named(tmp_path: Path) -> None:
    with pytest.raises(NovaMeshError) as refused:
        load_key(tmp_path / "coordinator.key")
    assert (refused.value.code, "coordinator init" in refused.value.hint) == (
        Code.NOT_FOUND,
        True,
    )
    (tmp_path / "coordinator.key").mkdir()
    with pytest.raises(NovaMeshError) as refused:
        load_key(tmp_path / "coordinator.key")
    assert refused.value.code is Code.STORAGE


def test_a_small_file_is_replaced_whole(tmp_path: Path) -> None:
    for text in ("one\n", "two\n"):
        write_text(tmp_path / "address", text)
        assert (tmp_path / "address").read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == ["address"]
    (tmp_path / "file").touch()
    with pytest.raises(NovaMeshError) as refused:
        write_text(tmp_path / "file" / "address", "x")
    assert refused.value.code is Code.STORAGE
    with pytest.raises(NovaMeshError) as refused:
        create_key(tmp_path / "file" / "key")
    assert refused.value.code is Code.STORAGE
