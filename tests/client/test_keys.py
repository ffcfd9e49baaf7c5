"""Key files: made once, loaded whole, refused otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from novamesh.keys import create_key, load_key, load_or_create_key
from novamesh_proto.errors import Code, NovaMeshError


def test_created_key_is_loaded_again(tmp_path: Path) -> None:
    path = tmp_path / "client.key"
    key = create_key(path)
    assert load_key(path).node_id == key.node_id
    assert load_or_create_key(path).node_id == key.node_id
    assert path.read_text() == key.to_bytes().hex() + "\n"
    assert path.stat().st_mode & 0o777 == 0o600


def test_existing_key_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "client.key"
    key = create_key(path)
    with pytest.raises(NovaMeshError) as caught:
        create_key(path)
    assert caught.value.code is Code.CONFLICT
    assert load_key(path).node_id == key.node_id


def test_missing_key_is_made_on_first_use(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "client.key"
    assert load_or_create_key(path).node_id == load_key(path).node_id


@pytest.mark.parametrize("content", ["", "zz" * 32, "ab" * 31, "ab" * 33, "é" * 32, "x" * 300])
def test_damaged_file_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "client.key"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(NovaMeshError) as caught:
        load_key(path)
    assert caught.value.code in {Code.BAD_KEY, Code.TOO_LARGE}
    assert str(path) in caught.value.message


def test_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "client.key"
    create_key(path)
    path.chmod(0o644)
    with pytest.raises(NovaMeshError) as caught:
        load_or_create_key(path)
    assert caught.value.hint == f"chmod 600 {path}"
