"""The C++ library is found, checked and refused for a reason."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from novamesh_engine.kernels import library


def test_no_library_is_said_so(tmp_path: Path) -> None:
    assert library.find_library([str(tmp_path)]) is None
    with pytest.raises(library.UnusableLibraryError, match="not built"):
        library.load_library(None)


def test_a_file_that_is_no_library_is_said_so(tmp_path: Path) -> None:
    (tmp_path / library.LIBRARY).write_text("not ELF")
    found = library.find_library(["/nowhere", str(tmp_path)])
    with pytest.raises(library.UnusableLibraryError, match="cannot be used"):
        library.load_library(found)


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("int nm_abi_version(void) { return 77; }", "has ABI 77, not 3"),
        ("int nm_abi_version(void) { return 3; }", "cannot be used"),
    ],
)
def test_a_library_of_another_abi_is_refused(tmp_path: Path, source: str, why: str) -> None:
    (tmp_path / "old.c").write_text(source + "\n")
    path = tmp_path / library.LIBRARY
    subprocess.run(["cc", "-shared", "-fPIC", "-o", path, tmp_path / "old.c"], check=True)
    with pytest.raises(library.UnusableLibraryError, match=why):
        library.load_library(path)


def test_the_best_set_is_chosen_or_the_one_asked_for() -> None:
    assert library.choose_set(("scalar", "avx2"), None) == "avx2"
    assert library.choose_set(("scalar", "avx2"), "scalar") == "scalar"
    with pytest.raises(library.UnusableLibraryError, match="avx9 cannot run here, scalar can"):
        library.choose_set(("scalar",), "avx9")
