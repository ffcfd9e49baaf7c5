"""docs/cli.md is what the commands say of themselves."""

from __future__ import annotations

from pathlib import Path

from novamesh.cli import app
from novamesh.cli.reference import reference

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"


def test_page_is_fresh() -> None:
    assert PAGE.read_text() == reference(), "docs/cli.md is stale: make docs"


def test_page_names_every_command() -> None:
    text = reference()
    for name in app:
        if not name.startswith("-"):
            assert f"### novamesh {name}\n" in text
