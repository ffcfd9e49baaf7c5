"""The place where a model is made: whole on the shelf or not at all, one process at a time."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from novamesh_node import workspace
from novamesh_node.workspace import (
    MARGIN_BYTES,
    ORIGIN_FILE,
    Workspace,
    check_space,
    discard,
    disk_bytes,
    download_folder,
    find_worker,
    gigabytes,
    lock,
    read_origin,
    unfinished,
)
from novamesh_proto.errors import Code, NovaMeshError
from support.tiny_profile import save_tiny_profile

ORIGIN = {"repository": "org/tiny", "commit": "a" * 40}
Usage = namedtuple("Usage", ["total", "used", "free"])


def make(work: Workspace, name: str = "tiny") -> str:
    """A finished profile in the workspace; its digest."""
    work.begin(ORIGIN)
    return save_tiny_profile(work.profile, name).digest_text


def test_a_finished_profile_is_put_on_the_shelf_with_its_origin(tmp_path: Path) -> None:
    work = Workspace.of(tmp_path, "tiny")
    with work.locked():
        digest = make(work)
        assert work.install().digest_text == digest
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]
    assert read_origin(tmp_path / "tiny") == ORIGIN


def test_an_older_model_gives_way(tmp_path: Path) -> None:
    work = Workspace.of(tmp_path, "tiny")
    for name in ("one", "two"):
        with work.locked():
            digest = make(work, name)
            assert work.install().digest_text == digest
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_the_older_model_stays_if_the_process_ended_between_two_renames(tmp_path: Path) -> None:
    work = Workspace.of(tmp_path, "tiny")
    profile = save_tiny_profile(tmp_path / "tiny")
    with work.locked():
        make(work, "new")
        work.target.rename(work.folder / "replaced")
    with work.locked():
        assert work.target.exists()
        assert save_tiny_profile(tmp_path / "same").digest == profile.digest
    assert work.profile.exists()


def test_nothing_is_left_of_what_was_not_begun(tmp_path: Path) -> None:
    work = Workspace.of(tmp_path / "shelf", "tiny")
    with pytest.raises(KeyboardInterrupt), work.locked():
        raise KeyboardInterrupt
    assert not work.folder.exists()
    with work.locked():
        work.begin(ORIGIN)
    downloads = download_folder(tmp_path / "shelf", "org/tiny", "a" * 40)
    downloads.mkdir(parents=True)
    (downloads / "model.safetensors.part").write_bytes(bytes(100_000))
    assert list(unfinished(tmp_path / "shelf")) == ["tiny"]
    assert unfinished(tmp_path / "shelf")["tiny"] >= 100_000
    with work.locked():
        work.remove()
    assert not list((tmp_path / "shelf").iterdir())


def test_a_download_that_another_pull_uses_stays(tmp_path: Path) -> None:
    work, downloads = (
        Workspace.of(tmp_path, "tiny"),
        download_folder(tmp_path, "org/tiny", "a" * 40),
    )
    with work.locked(), lock(downloads, ""):
        work.begin(ORIGIN)
        with pytest.raises(NovaMeshError) as caught:
            work.remove()
    assert caught.value.code is Code.CONFLICT
    assert downloads.exists()


@pytest.mark.parametrize("name", ["", "..", ".pull", "a/b", "A", "x" * 65])
def test_a_name_stays_on_the_shelf(tmp_path: Path, name: str) -> None:
    with pytest.raises(NovaMeshError) as caught:
        Workspace.of(tmp_path, name)
    assert caught.value.code is Code.BAD_REQUEST


def test_a_lock_that_was_removed_meanwhile_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, usual, left = tmp_path / "model", fcntl.flock, [2]

    def flock(file: int, how: int) -> None:
        if left[0]:  # whoever was here ends, and takes the folder away
            left[0] -= 1
            discard(folder)
        usual(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with lock(folder, "somebody works here"):
        assert (folder / "lock").read_text() == f"{os.getpid()}\n"
        with pytest.raises(NovaMeshError, match="somebody works here"):
            lock(folder, "somebody works here").__enter__()
    left[0] = 100
    with pytest.raises(NovaMeshError) as refused:
        lock(folder, "somebody works here").__enter__()
    assert refused.value.code is Code.CONFLICT


def test_a_lock_names_its_process_and_ends_with_it(tmp_path: Path) -> None:
    with lock(tmp_path, "somebody works here"):
        with pytest.raises(NovaMeshError, match=f"process {os.getpid()}") as caught:
            lock(tmp_path, "somebody works here").__enter__()
        assert caught.value.code is Code.CONFLICT
    with lock(tmp_path, "nobody"):
        pass


def test_who_works_in_a_folder_can_be_seen_without_taking_it(tmp_path: Path) -> None:
    assert find_worker(tmp_path / "none") == ""
    with lock(tmp_path, "somebody works here"):
        assert find_worker(tmp_path) == f"process {os.getpid()}"
        (tmp_path / "lock").write_text("")
        assert find_worker(tmp_path) == "a process that begins just now"
    assert find_worker(tmp_path) == ""
    (tmp_path / "lock").write_text("12345\n")  # of a process that was killed
    assert find_worker(tmp_path) == ""


def test_somebody_who_only_looks_keeps_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "lock").open("w") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        monkeypatch.setattr(workspace, "sleep", lambda _: looking.close())
        with lock(tmp_path, "somebody works here"):
            assert find_worker(tmp_path) == f"process {os.getpid()}"


@pytest.mark.parametrize(("code", "kept"), [(Code.STORAGE, True), (Code.CORRUPT, False)])
def test_nothing_is_kept_of_what_is_corrupt(tmp_path: Path, code: Code, kept: bool) -> None:
    work = Workspace.of(tmp_path, "tiny")
    with work.locked():
        work.begin(ORIGIN)
        with pytest.raises(NovaMeshError), work.discarded_if_corrupt():
            raise NovaMeshError(code, "no", "never")
    assert work.folder.exists() is kept


def test_a_shelf_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NovaMeshError) as caught:
        lock(tmp_path / "file" / "shelf", "").__enter__()
    assert caught.value.code is Code.STORAGE


def test_missing_space_is_told_in_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = MARGIN_BYTES + 2 * 10**9
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**12, 10**12 - free, free))
    check_space(tmp_path / "not" / "there" / "yet", 2 * 10**9, "it")
    with pytest.raises(NovaMeshError) as caught:
        check_space(tmp_path / "not" / "there", 5 * 10**9, "tiny")
    assert caught.value.code is Code.STORAGE
    assert caught.value.message == (
        f"tiny does not fit on the disk of {tmp_path}: 5.0 GB are needed, 2.0 GB can be had"
    )
    assert "free 3.0 GB there" in caught.value.hint


def test_an_origin_that_is_none_is_nothing(tmp_path: Path) -> None:
    assert read_origin(tmp_path) == {}
    for text in ("", "[]", '{"repository": 1}'):
        (tmp_path / ORIGIN_FILE).write_text(text)
        assert read_origin(tmp_path) == {}


def test_bytes_of_a_folder_and_for_people(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(10_000))
    assert disk_bytes(tmp_path) >= 10_000
    assert disk_bytes(tmp_path / "none") == 0
    assert (gigabytes(4_264_000_000), gigabytes(12_300_000)) == ("4.3 GB", "12 MB")
    assert (gigabytes(12_300), gigabytes(0)) == ("12 kB", "0 kB")
