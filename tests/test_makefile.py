"""`make`: which Python it takes, what it installs for what, and what it does not install twice."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PARTS, TESTED = "'.[node,coordinator]'", "'.[node,coordinator,test]'"
# Stands for a Python without ensurepip: it makes a venv only if no pip is asked for.
WITHOUT_ENSUREPIP = """#!/bin/sh
echo "$@" >> "$LOG"
case "$*" in
  "-m venv --clear --without-pip $VENV") mkdir -p "$VENV/bin" && cp "$0" "$VENV/bin/python" ;;
  "-m venv $VENV") mkdir -p "$VENV/bin" && cp "$0" "$VENV/bin/python" && exit 1 ;;
esac
"""

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")


def _make(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [shutil.which("make") or "make", "--no-print-directory", *arguments],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


def _tools(folder: Path, *names: str) -> str:
    """A PATH with a shell and those programs only."""
    folder.mkdir()
    (folder / "sh").symlink_to("/bin/sh")
    for name in names:
        (folder / name).touch(mode=0o755)
    return str(folder)


@pytest.mark.parametrize(
    ("there", "taken"),
    [
        (("python3.11",), "python3.11"),
        (("python3",), "python3"),
        (("python3", "python3.11"), "python3.11"),
    ],
)
def test_either_name_of_python_will_do(there: tuple[str, ...], taken: str, tmp_path: Path) -> None:
    path = _tools(tmp_path / "bin", *there)
    said = _make("-n", "demo", f"VENV={tmp_path / 'venv'}", PATH=path).stdout
    assert f"{path}/{taken} -m venv {tmp_path / 'venv'} ||" in said


def test_demo_installs_no_test_tools(tmp_path: Path) -> None:
    said = _make("-n", "demo", f"VENV={tmp_path}").stdout
    assert PARTS in said
    assert TESTED not in said


def test_demo_after_test_installs_nothing_and_test_after_demo_what_it_lacks(
    tmp_path: Path,
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").touch()
    said = _make("-n", "test", f"VENV={tmp_path}").stdout
    assert f"touch {tmp_path}/.demo {tmp_path}/.run" in said
    (tmp_path / ".demo").touch()
    assert "pip install" not in _make("-n", "demo", f"VENV={tmp_path}").stdout
    assert TESTED in _make("-n", "test", f"VENV={tmp_path}").stdout


@pytest.mark.parametrize("name", ["failover", "mesh", "paths", "presence", "standby"])
def test_each_measurement_of_the_network_has_a_target_that_asks_for_all_of_it(
    name: str, tmp_path: Path
) -> None:
    said = _make("-n", name, f"VENV={tmp_path}").stdout
    assert f"{tmp_path}/.servers" in said
    assert f"PYTHONPATH=tests {tmp_path}/bin/python benchmarks/{name}.py $mode" in said
    asked = re.findall(r"for mode in (.*?); do", said)[0].split()
    helped = subprocess.run(
        [sys.executable, f"benchmarks/{name}.py", "--help"], cwd=ROOT, text=True, check=True,
        env=os.environ | {"PYTHONPATH": "tests"}, capture_output=True,
    ).stdout  # fmt: skip
    known = re.findall(r"^usage:[^{]*?\{([\w,]+)\}", helped, re.MULTILINE)
    assert asked == (known[0].split(",") if known else ['""'])
    assert name in re.findall(r"for name in (.*?); do", _make("-n", "network").stdout)[0].split()


def test_venv_without_ensurepip_gets_its_pip_from_outside(tmp_path: Path) -> None:
    venv, log, python = tmp_path / "venv", tmp_path / "log", tmp_path / "python"
    python.write_text(WITHOUT_ENSUREPIP)
    python.chmod(0o755)
    target = f"{venv}/bin/python"
    _make(target, f"VENV={venv}", f"PYTHON={python}", VENV=str(venv), LOG=str(log))
    assert log.read_text().splitlines() == [
        f"-m venv {venv}",
        f"-m venv --clear --without-pip {venv}",
        f"-m pip --python {target} install --quiet pip",
        "-m pip install --quiet --upgrade pip",
    ]
