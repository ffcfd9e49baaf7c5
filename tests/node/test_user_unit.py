"""The unit of a node: what systemd itself says of it, and whose file it is."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from novamesh_node import worker
from novamesh_node.lifecycle import DRAIN_MS
from novamesh_node.session import FAREWELL_S
from novamesh_node.user_unit import (
    NAME,
    PREVENTED,
    STOP_S,
    check_unit,
    quote,
    remove_unit,
    render,
    write_unit,
)
from novamesh_proto.errors import Code, NovaMeshError
from support.debian_packages import tool

COMMAND = ["/bin/true", "-m", "novamesh", "node", "start"]
EXPOSURE_MOST = 68  # systemd's own scale, 0 to 100; a user's manager can do no better than this


def analyze(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """systemd-analyze as a user's manager would read the unit."""
    found = tool("systemd-analyze", "systemd")
    env = found.environment() | {"XDG_RUNTIME_DIR": str(folder), "SYSTEMD_COLORS": "0"}
    return subprocess.run(
        [found.path, "--user", *words], env=env, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("home", [None, Path('/data/my "models" 100%/$HOME')])
def test_systemd_finds_nothing_to_say_about_it(tmp_path: Path, home: Path | None) -> None:
    unit = tmp_path / NAME
    write_unit(unit, render(COMMAND, home))
    said = analyze(tmp_path, "verify", str(unit))
    assert (said.returncode, said.stdout, said.stderr) == (0, "", "")


def test_systemd_would_have_said_something(tmp_path: Path) -> None:
    """An unknown key costs no exit status, only a line."""
    unit = tmp_path / NAME
    unit.write_text(render(COMMAND, None).replace("Nice=", "Nicer="))
    assert "Unknown key 'Nicer'" in analyze(tmp_path, "verify", str(unit)).stderr


def test_its_exposure_is_bounded(tmp_path: Path) -> None:
    unit = tmp_path / NAME
    write_unit(unit, render(COMMAND, None))
    words = ("security", "--offline=true", f"--threshold={EXPOSURE_MOST}", str(unit))
    said = analyze(tmp_path, *words)
    assert said.returncode == 0, said.stdout[-200:]


def test_what_cuda_needs_is_not_taken_away() -> None:
    keys = {line.partition("=")[0] for line in render(COMMAND, None).splitlines()}
    assert not keys & {"MemoryDenyWriteExecute", "PrivateDevices", "DevicePolicy", "PrivateUsers"}


def test_a_stop_may_take_as_long_as_a_node_needs() -> None:
    assert DRAIN_MS / 1000 + 2 * FAREWELL_S + worker.STOP_S + 10 <= STOP_S
    assert f"TimeoutStopSec={STOP_S}\n" in render(COMMAND, None)


def test_what_nobody_can_heal_by_a_restart_is_not_restarted() -> None:
    assert PREVENTED == [2, 77, 78]
    assert "RestartPreventExitStatus=2 77 78\n" in render(COMMAND, None)


@pytest.mark.parametrize(
    ("word", "written"),
    [
        ("/opt/x/bin/python3.11", "/opt/x/bin/python3.11"),
        ("/home/jo ann/venv", '"/home/jo ann/venv"'),
        ('a"b\\c', '"a\\"b\\\\c"'),
        ("100%", "100%%"),
        ("", '""'),
    ],
)
def test_words_are_quoted_as_systemd_reads_them(word: str, written: str) -> None:
    assert quote(word) == written


@pytest.mark.parametrize("word", ["/opt/a\nExecStartPre=/bin/false", "/opt/$HOME/python"])
def test_what_a_unit_cannot_hold_is_refused(word: str) -> None:
    with pytest.raises(NovaMeshError, match="characters that a unit cannot hold"):
        render([word], None)
    if "\n" in word:
        with pytest.raises(NovaMeshError):
            render(COMMAND, Path(word))


def test_it_is_written_once_and_replaced_by_its_successor(tmp_path: Path) -> None:
    unit = tmp_path / "systemd" / "user" / NAME
    assert not check_unit(unit)
    assert write_unit(unit, render(COMMAND, None))
    assert not write_unit(unit, render(COMMAND, None))
    assert write_unit(unit, render(COMMAND, Path("/data")))
    assert "Environment=NOVAMESH_HOME=/data\n" in unit.read_text()
    assert check_unit(unit)
    assert remove_unit(unit)
    assert not remove_unit(unit)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"[Service]\nExecStart=/bin/true\n", "is not one of ours"),
        (b"\xff\xfe", "is not one of ours"),
        (b"", "is not one of ours"),
        (re.sub("Nice=10", "Nice=0", render(COMMAND, None)).encode(), "was edited by hand"),
    ],
)
def test_a_file_that_we_did_not_write_stays(tmp_path: Path, content: bytes, problem: str) -> None:
    unit = tmp_path / NAME
    unit.write_bytes(content)
    for touch in (lambda: write_unit(unit, render(COMMAND, None)), lambda: remove_unit(unit)):
        with pytest.raises(NovaMeshError, match=problem) as refused:
            touch()
        assert refused.value.code is Code.CONFLICT
    assert unit.read_bytes() == content


def test_a_place_that_cannot_be_read_or_removed_is_told(tmp_path: Path) -> None:
    unit = tmp_path / NAME
    unit.mkdir()
    with pytest.raises(NovaMeshError, match="cannot read") as refused:
        check_unit(unit)
    assert refused.value.code is Code.STORAGE
