"""Logs: key=value or JSON on stderr, nothing on stdout, no local variables."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from novamesh_coordinator.logs import configure_logs


@pytest.fixture(autouse=True)
def _logs_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


def test_a_line_says_when_what_and_with_which_values(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("text")
    structlog.get_logger().info("node attached", node="12D3Koo…abcd", resumed=2)
    structlog.get_logger().debug("too much")
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.endswith("Z [info     ] node attached node=12D3Koo…abcd resumed=2")


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("json")
    structlog.get_logger().warning("not attached", code="banned")
    line = json.loads(capsys.readouterr().err)
    assert (line["event"], line["level"], line["code"]) == ("not attached", "warning", "banned")
    assert line["timestamp"].endswith("Z")


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_an_exception_is_logged_without_local_variables(
    log_format: str, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logs(log_format)
    secret = "".join(["do ", "not ", "print"])
    try:
        raise RuntimeError("broken")
    except RuntimeError:
        structlog.get_logger().exception("a call failed")
    said = capsys.readouterr().err
    assert "RuntimeError: broken" in said
    assert secret not in said
