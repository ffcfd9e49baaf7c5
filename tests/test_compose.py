"""compose.yaml says what our own parser takes, and sets only variables that our parts read.

What its comments tell people to type is checked as the services' own commands are; the join code
goes the whole way from the invite to the node's configuration.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from novamesh.cli import app, main
from novamesh.config import HOME_VARIABLE, ClientSettings, Pool
from novamesh.settings import describe, variable
from novamesh_coordinator.config import PREFIX, CoordinatorConfig
from novamesh_node import daemon, logs
from novamesh_node.config import JOIN_VARIABLE, NodeConfig, NodeSettings

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "compose.yaml").read_text()
COMPOSE: dict[str, Any] = json.loads(json.dumps(YAML(typ="safe", pure=True).load(TEXT)))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
COMMANDS = [
    (name, words)
    for name, service in SERVICES.items()
    for words in (service["command"], service.get("healthcheck", {}).get("test", ["CMD"])[1:])
    if words
]
# `#   VARIABLE=… docker compose VERB … SERVICE novamesh …   a remark`
TYPED = re.findall(r"^# {3}(?:\S+=\S+ )?(docker compose .+?)(?: {3,}.*)?$", TEXT, re.MULTILINE)


def known_variables() -> set[str]:
    """Every environment variable that a part of ours reads."""
    sections = {"client": ClientSettings, "node": NodeSettings, "pool": Pool}
    names = {variable(section, key) for section, cls in sections.items() for key in describe(cls)}
    options = [field.name for field in dataclasses.fields(CoordinatorConfig)]
    return names | {f"{PREFIX}{name}".upper() for name in options} | {HOME_VARIABLE, JOIN_VARIABLE}


@pytest.mark.parametrize(("service", "words"), COMMANDS, ids=lambda value: "-".join(value[:3]))
def test_command_is_one_of_ours(service: str, words: list[str]) -> None:
    assert words[0] == "novamesh"
    app.parse_args(words[1:], exit_on_error=False, print_error=False)


@pytest.mark.parametrize("line", TYPED)
def test_what_the_comments_tell_to_type_parses_and_names_our_services(line: str) -> None:
    words = shlex.split(line)
    assert set(SERVICES) & set(words), line
    if "novamesh" in words:
        ours = words[words.index("novamesh") + 1 :]
        app.parse_args(ours, exit_on_error=False, print_error=False)


def test_no_line_of_the_comments_was_overlooked() -> None:
    assert len(TYPED) == TEXT.count("docker compose ") == 5


def test_every_variable_is_read_by_one_of_our_parts() -> None:
    in_services = {name for each in SERVICES.values() for name in each.get("environment", {})}
    typed_or_filled_in = set(re.findall(r"\b(NOVAMESH_[A-Z_]+)", TEXT))
    in_the_image = set(re.findall(r"\b(NOVAMESH_[A-Z_]+)=", (ROOT / "Dockerfile").read_text()))
    assert {"NOVAMESH_JOIN", "NOVAMESH_COORDINATOR_ADDRESS"} <= in_services
    assert in_the_image == {HOME_VARIABLE}
    assert in_services | typed_or_filled_in | in_the_image <= known_variables()


def test_an_invite_leads_the_node_to_the_coordinators_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in SERVICES["coordinator"]["environment"].items():
        monkeypatch.setenv(name, value)
    home = str(tmp_path / "coordinator")
    assert main(["coordinator", "init", "--name", "mypool", "--home", home]) == 0
    capsys.readouterr()
    assert main(["coordinator", "invite", "--home", home]) == 0
    config = configure_node(tmp_path / "node", capsys.readouterr().out, monkeypatch)
    host, _, port = config.pool.address.partition(":")
    assert host in SERVICES
    assert f"{port}:{port}" in SERVICES[host]["ports"]
    assert f"0.0.0.0:{port}" in SERVICES[host]["command"]
    assert (config.joining, config.pool.network) == (True, "mypool")


def configure_node(home: Path, code: str, monkeypatch: pytest.MonkeyPatch) -> NodeConfig:
    """What the node's command is set to when NOVAMESH_JOIN holds that code."""
    seen: list[NodeConfig] = []

    async def serve(config: NodeConfig, voice: daemon.Voice) -> None:
        seen.append(config)

    monkeypatch.setattr(daemon, "serve", serve)
    monkeypatch.setattr(logs, "configure", lambda *_: None)
    monkeypatch.setenv(HOME_VARIABLE, str(home))
    for name, value in SERVICES["node"]["environment"].items():
        filled_in = re.sub(r"\$\{NOVAMESH_JOIN:-\}", code.strip(), value)
        monkeypatch.setenv(name, filled_in)
    assert main(SERVICES["node"]["command"][1:]) == 0
    return seen[0]


def test_what_a_part_writes_is_on_a_volume() -> None:
    """The image is read-only and has one folder for everything of ours."""
    home = re.search(rf"{HOME_VARIABLE}=(\S+)", (ROOT / "Dockerfile").read_text())
    assert home is not None
    for service in SERVICES.values():
        assert [mount.partition(":")[2] for mount in service["volumes"]] == [home[1]]


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
    condition = SERVICES["node"]["depends_on"]["coordinator"]["condition"]
    assert condition == "service_healthy"
    assert "healthcheck" in SERVICES["coordinator"]
