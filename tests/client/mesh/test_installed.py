"""Whether libp2p is here, and what is said where it is not."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from novamesh.mesh import installed
from novamesh_proto.errors import Code, NovaMeshError

ROOT = Path(__file__).parents[3]


def test_it_is_installed_where_tests_run() -> None:
    assert installed.version() == "0.8.1"
    installed.require()


def test_without_it_the_way_to_get_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for lacks, hint in (((), installed.HINT), (("gcc",), installed.HINT_NO_COMPILER)):
        monkeypatch.setattr(installed, "build_lacks", lambda lacks=lacks: lacks)
        with pytest.raises(NovaMeshError) as raised:
            installed.require()
        assert raised.value.code is Code.UNSUPPORTED
        assert raised.value.message == "libp2p is not installed"
        assert raised.value.hint == hint


def test_headers_are_looked_for_where_compilers_look(tmp_path: Path) -> None:
    assert "gmp.h" in installed.build_lacks((tmp_path,))
    (tmp_path / "gmp.h").touch()
    assert "gmp.h" not in installed.build_lacks((tmp_path,))


def test_machine_without_a_compiler_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert "gcc" in installed.build_lacks()


def test_every_way_to_install_names_the_same_versions() -> None:
    """pyproject, constraints, the Makefile, the hint and the document: no one is forgotten."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    [pin] = project["project"]["optional-dependencies"]["p2p"]
    [override] = project["tool"]["uv"]["override-dependencies"]
    makefile = (ROOT / "Makefile").read_text()
    document = (ROOT / "docs/mesh.md").read_text()
    assert pin in (ROOT / "constraints.txt").read_text().splitlines()
    assert re.search(rf"^P2P := {re.escape(pin)}$", makefile, re.MULTILINE)
    assert override in installed.HINT_NO_COMPILER
    for command in (installed.HINT, installed.HINT_NO_COMPILER.partition("  ")[2]):
        for line in command.split(" && "):
            assert line in document


def test_makefile_installs_as_the_document_says() -> None:
    """The no-compiler way of docs/mesh.md is the one that `make test` takes."""
    lines = [line.strip() for line in (ROOT / "Makefile").read_text().splitlines()]
    [ours] = [line for line in lines if "-m uv pip install" in line]
    document = (ROOT / "docs/mesh.md").read_text()
    command = "uv pip install --python .venv/bin/python -c constraints.txt 'libp2p==0.8.1'"
    assert command in document
    spelt = ours.replace("$(PY)", ".venv/bin/python").replace("$(P2P)", "libp2p==0.8.1")
    assert command in spelt.replace("--quiet ", "")


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
@pytest.mark.parametrize(("fails", "by"), [("uv", "pip"), ("nothing", "uv")])
def test_makefile_says_which_way_it_took(fails: str, by: str, tmp_path: Path) -> None:
    log, python = tmp_path / "log", tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\necho "$@" >> {log}\ntest "$2" != {fails}\n')
    python.chmod(0o755)
    command = ["make", f"{tmp_path}/.run", f"VENV={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    installs = [line for line in log.read_text().splitlines() if "libp2p" in line]
    assert len(installs) == 1 + (by == "pip")
    assert f"-m {by} " in installs[-1]
    said = {"uv": "installed by uv, nothing was compiled", "pip": "uv could not; by pip"}
    assert f"libp2p==0.8.1: {said[by]}" in done.stdout
