"""The mark beside the database: what was written is read, and anything else is damage."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from novamesh_coordinator.high_water import HighWater, Remembered
from novamesh_coordinator.log_chain import Mark
from novamesh_proto.errors import Code, NovaMeshError

PLACE = Mark(815, bytes(range(32)))


def test_a_new_file_says_that_nothing_was_acknowledged(tmp_path: Path) -> None:
    mark = HighWater(tmp_path / "mark")
    assert mark.read() == Mark()
    assert (tmp_path / "mark").stat().st_mode & 0o777 == 0o600
    mark.close()


def test_the_last_place_is_read_back(tmp_path: Path) -> None:
    first = HighWater(tmp_path / "mark")
    for seq in (10**19, 1, PLACE.seq):
        first.write(Mark(seq, PLACE.digest))
    first.close()
    again = HighWater(tmp_path / "mark")
    assert again.read() == PLACE
    again.close()


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b + b" ", lambda b: b"x" + b[1:]])
def test_damage_is_told(tmp_path: Path, damage: object) -> None:
    mark = HighWater(tmp_path / "mark")
    mark.write(PLACE)
    data = (tmp_path / "mark").read_bytes()
    (tmp_path / "mark").write_bytes(damage(data))  # type: ignore[operator]
    with pytest.raises(NovaMeshError, match="damaged") as refused:
        mark.read()
    assert refused.value.code is Code.CORRUPT
    mark.close()


def test_a_place_that_cannot_be_written_is_storage(tmp_path: Path) -> None:
    with pytest.raises(NovaMeshError) as refused:
        HighWater(tmp_path / "no" / "mark")
    assert refused.value.code is Code.STORAGE


def test_a_disk_that_refuses_the_mark_does_not_undo_a_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = HighWater(tmp_path / "mark")
    mark.write(PLACE)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "the disk is full")

    monkeypatch.setattr(os, "pwrite", full)
    mark.write(Mark(816, PLACE.digest))
    assert mark.read() == PLACE
    mark.close()


def test_whoever_only_looks_makes_no_file(tmp_path: Path) -> None:
    looking = HighWater(tmp_path / "c.mark", look_only=True)
    assert looking.read() == Mark()
    looking.close()
    assert not list(tmp_path.iterdir())


def test_on_a_server_the_process_remembers() -> None:
    mark = Remembered()
    assert mark.read() == Mark()
    mark.write(PLACE)
    assert mark.read() == PLACE
    refused = mark.ahead(Mark(814, PLACE.digest))
    assert refused.code is Code.CORRUPT
    assert "event 814" in refused.message
    assert "event 815 was acknowledged" in refused.message
    mark.close()
