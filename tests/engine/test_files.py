"""Only regular files are read, and never more of them than was allowed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from novamesh_engine.files import open_file, parse_object, read_bytes
from novamesh_proto.errors import Code, NovaMeshError


def test_a_file_is_read_up_to_its_bound(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"four")
    (tmp_path / "link").symlink_to("a")
    assert read_bytes(tmp_path / "a", 4) == read_bytes(tmp_path / "link", 4) == b"four"
    with pytest.raises(NovaMeshError, match="a: is larger than 3 bytes") as refused:
        read_bytes(tmp_path / "a", 3)
    assert refused.value.code is Code.CORRUPT


def test_what_does_not_end_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("pipe", "device", "loop", "nothing", "."):
        with pytest.raises(OSError, match=name):
            open_file(tmp_path / name)
        with pytest.raises(NovaMeshError, match="cannot be read") as refused:
            read_bytes(tmp_path / name, 10, "look")
        assert refused.value.code is Code.MODEL_NOT_FOUND
        assert refused.value.hint == "look"


@pytest.mark.parametrize("data", [b"{", b"[]", b"\xff", b"[" * 100_000])
def test_what_is_no_object_is_named(data: bytes) -> None:
    with pytest.raises(NovaMeshError, match="x: is not") as refused:
        parse_object(data, Path("x"))
    assert refused.value.code is Code.CORRUPT


def test_an_object_is_parsed() -> None:
    assert parse_object('{"a": 1}', Path("x")) == {"a": 1}
