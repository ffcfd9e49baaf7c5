"""`novamesh node install` and `uninstall`, with a systemctl that writes down what it is told."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from novamesh.cli import main
from novamesh_node import service_cli
from novamesh_node.user_unit import NAME, check_unit

SYSTEMCTL = """#!/bin/sh
echo "$*" >> {log}
case "$*" in *{failing}*) echo "Job for it failed." >&2; exit 1 ;; esac
"""


class Desk:
    """Where somebody types: folders of their own, and a PATH with that systemctl only."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.config, self._bin = folder / "config", folder / "bin"
        self.unit = self.config / "systemd" / "user" / NAME
        self._log = folder / "log"
        self._bin.mkdir()
        monkeypatch.setenv("XDG_CONFIG_HOME", str(self.config))
        monkeypatch.setenv("PATH", str(self._bin))
        monkeypatch.setenv("LOGNAME", "jo")
        monkeypatch.setattr(service_cli, "LINGERING", folder / "linger")
        monkeypatch.delenv("NOVAMESH_HOME", raising=False)
        self.answer()

    def answer(self, failing: str = "no such order") -> None:
        """Every order is obeyed but the one with those words."""
        path = self._bin / "systemctl"
        path.write_text(SYSTEMCTL.format(log=self._log, failing=failing.replace(" ", "\\ ")))
        path.chmod(0o755)

    def say(self, text: str) -> None:
        """No order is obeyed, for that reason."""
        path = self._bin / "systemctl"
        path.write_text(f"#!/bin/sh\necho '{text}' >&2\nexit 1\n")

    def without(self) -> None:
        (self._bin / "systemctl").unlink()

    def told(self) -> list[str]:
        """The orders since the last look."""
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        self._log.unlink(missing_ok=True)
        return lines


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    return Desk(tmp_path, monkeypatch)


def test_installing_twice_is_installing_once(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["node", "install"]) == 0
    assert f"ExecStart={sys.executable} -m novamesh node start\n" in desk.unit.read_text()
    assert desk.told() == [
        "--user daemon-reload", f"--user enable {NAME}", f"--user restart {NAME}",
    ]  # fmt: skip
    said = capsys.readouterr()
    assert said.out == ""
    assert "loginctl enable-linger" in said.err
    before = desk.unit.read_text()
    assert main(["node", "install"]) == 0
    assert desk.unit.read_text() == before
    assert f"--user start {NAME}" in desk.told()
    assert "there already" in capsys.readouterr().err


def test_a_dry_run_prints_and_touches_nothing(
    desk: Desk, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["node", "install", "--dry-run", "--home", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert f"Environment=NOVAMESH_HOME={tmp_path}\n" in said.out
    assert said.err == ""
    assert not desk.config.exists()
    assert desk.told() == []


def test_the_home_of_the_environment_is_fixed_in_the_unit(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NOVAMESH_HOME", "mine")
    assert main(["node", "install"]) == 0
    assert f"Environment=NOVAMESH_HOME={tmp_path / 'mine'}\n" in desk.unit.read_text()


def test_without_a_start_nothing_is_ordered(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    desk.without()
    assert main(["node", "install", "--no-start"]) == 0
    assert "systemctl --user enable --now" in capsys.readouterr().err
    assert check_unit(desk.unit)


def test_lingering_is_not_asked_for_twice(
    desk: Desk, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "linger").mkdir()
    (tmp_path / "linger" / "jo").touch()
    assert main(["node", "install"]) == 0
    assert "loginctl" not in capsys.readouterr().err


def test_a_service_that_does_not_come_up_is_told_with_a_way_to_see_why(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    desk.answer(failing=f"restart {NAME}")
    assert main(["node", "install"]) == 69
    assert capsys.readouterr().err.splitlines()[-2:] == [
        f"error: systemctl --user restart {NAME}: Job for it failed.",
        f"hint: journalctl --user -u {NAME} -n 20",
    ]


def test_without_systemd_the_command_is_told(
    desk: Desk, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.without()
    assert main(["node", "install"]) == 1
    assert "novamesh node start" in capsys.readouterr().err
    monkeypatch.setattr(sys, "platform", "darwin")
    assert main(["node", "uninstall"]) == 1
    assert "no systemd on this system" in capsys.readouterr().err


def test_a_systemd_that_runs_for_nobody_is_told_with_what_brings_one(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    desk.say("Failed to connect to bus: No medium found")
    for command in ("install", "uninstall"):
        assert main(["node", command]) == 1
        told = capsys.readouterr().err
        assert "error: no systemd runs for you here: Failed to connect to bus" in told
        assert "hint: sudo loginctl enable-linger jo " in told
        assert desk.unit.exists()


def test_a_unit_of_somebody_else_is_neither_replaced_nor_stopped(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    desk.unit.parent.mkdir(parents=True)
    desk.unit.write_text("[Service]\nExecStart=/bin/true\n")
    assert main(["node", "install"]) == 1
    assert main(["node", "uninstall"]) == 1
    assert capsys.readouterr().err.count("is not one of ours") == 2
    assert desk.unit.read_text().startswith("[Service]")
    assert desk.told() == []


def test_uninstalling_stops_then_removes_and_does_nothing_twice(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["node", "install"]) == 0
    desk.told()
    assert main(["node", "uninstall"]) == 0
    assert desk.told() == [f"--user disable --now {NAME}", "--user daemon-reload"]
    assert not desk.unit.exists()
    assert main(["node", "uninstall"]) == 0
    assert f"there is no {desk.unit}" in capsys.readouterr().err
    assert desk.told() == []
