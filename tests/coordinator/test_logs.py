"""Logs: key=value lines on stderr."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog

from novamesh_coordinator.logs import configure_logs


@pytest.fixture(autouse=True)
def _logs_as_before() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def test_a_line_says_when_what_and_with_which_values(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs()
    structlog.get_logger().info("node attached", node="12D3Koo…abcd", resumed=2)
    structlog.get_logger().debug("too much")
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("timestamp='")
    assert line.endswith("level='info' event='node attached' node='12D3Koo…abcd' resumed=2")
