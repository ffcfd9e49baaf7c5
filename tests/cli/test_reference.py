"""docs/cli.md is what the commands say of themselves."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from novamesh import settings
from novamesh.cli import app
from novamesh.cli.config import sections
from novamesh.cli.reference import reference
from novamesh_coordinator.config import CoordinatorConfig, write_config

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"


def test_page_is_fresh() -> None:
    assert PAGE.read_text() == reference(), "docs/cli.md is stale: make docs"


def test_page_names_every_command() -> None:
    text = reference()
    for name in app:
        if not name.startswith("-"):
            assert f"### novamesh {name}\n" in text


def test_page_names_every_setting() -> None:
    text = reference()
    for section, cls in sections().items():
        for key in settings.describe(cls):
            assert f"| {section}.{key} | {settings.variable(section, key)} |" in text
    for field in dataclasses.fields(CoordinatorConfig):
        assert f"| {field.name} | NOVAMESH_COORDINATOR_{field.name.upper()} |" in text


def test_file_of_a_new_coordinator_points_to_what_is_there() -> None:
    pointer = re.search(r"docs/cli.md, (.+)\.", write_config(CoordinatorConfig()))
    assert pointer is not None
    assert f"### {pointer[1]}" in reference()
