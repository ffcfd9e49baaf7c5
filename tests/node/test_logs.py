"""Logs: key=value or JSON on stderr, nothing on stdout."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator

import pytest
import structlog

from novamesh_node import logs


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("json")
    structlog.get_logger().info("attached", session="ab", nothing=None)
    said = capsys.readouterr()
    assert said.out == ""
    line = json.loads(said.err)
    assert (line["event"], line["session"], line["level"]) == ("attached", "ab", "info")
    assert "nothing" not in line
    assert line["timestamp"].endswith("Z")


def test_text_keeps_control_characters_off_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.configure("text")
    structlog.get_logger().warning("not attached", error="\x1b[31mred\n")
    said = capsys.readouterr()
    assert said.out == ""
    assert "not attached" in said.err
    assert "\x1b" not in said.err
    assert said.err.count("\n") == 1


def test_debug_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("text")
    structlog.get_logger().debug("detail")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("env", "coloured"), [({}, True), ({"NO_COLOR": ""}, True), ({"NO_COLOR": "1"}, False)]
)
def test_colour_is_for_a_terminal_without_no_color(
    env: dict[str, str],
    coloured: bool,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    logs.configure("text", env=env)
    structlog.get_logger().info("attached")
    assert ("\x1b[" in capsys.readouterr().err) is coloured


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_no_local_variable_is_ever_logged(
    log_format: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(prompt: str) -> None:
        raise ValueError(len(prompt))

    logs.configure(log_format)
    try:
        fail("".join(("a sec", "ret")))
    except ValueError:
        structlog.get_logger().exception("it failed")
    shown = capsys.readouterr().err
    assert "ValueError" in shown
    assert "a secret" not in shown
