"""compose.yaml says what our own parser takes, and names only variables and ports that exist."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from novamesh.cli import app

ROOT = Path(__file__).parent.parent
COMPOSE: dict[str, Any] = json.loads(
    json.dumps(YAML(typ="safe", pure=True).load((ROOT / "compose.yaml").read_text()))
)
COMMANDS = [
    (name, words)
    for name, service in COMPOSE["services"].items()
    for words in (service["command"], service.get("healthcheck", {}).get("test", ["CMD"])[1:])
    if words
]


@pytest.mark.parametrize(("service", "words"), COMMANDS, ids=lambda value: "-".join(value[:3]))
def test_command_is_one_of_ours(service: str, words: list[str]) -> None:
    assert words[0] == "novamesh"
    app.parse_args(words[1:], exit_on_error=False, print_error=False)


def test_compose_file_follows_the_schema() -> None:
    checker = Path(sys.executable).parent / "check-jsonschema"
    done = subprocess.run(
        [checker, "--builtin-schema", "vendor.compose-spec", ROOT / "compose.yaml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_node_waits_for_a_healthy_coordinator() -> None:
    condition = COMPOSE["services"]["node"]["depends_on"]["coordinator"]["condition"]
    assert condition == "service_healthy"
    assert "healthcheck" in COMPOSE["services"]["coordinator"]
