"""compose.yaml says what our own parser takes, and sets only variables that our parts read.

What its comments tell people to type is checked as the services' own commands are; the join code
goes the whole way from the invite to the node's configuration. No engine runs here: what an image
of somebody else reads is checked in test_deploy.py.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

from novamesh.cli import app, main
from novamesh.config import HOME_VARIABLE, ClientSettings, Pool
from novamesh.settings import describe, variable
from novamesh_coordinator.config import PREFIX, CoordinatorConfig, load_config
from novamesh_coordinator.config import find_folder as find_coordinator
from novamesh_node import daemon, logs
from novamesh_node.config import JOIN_VARIABLE, NodeConfig, NodeSettings
from novamesh_node.user_unit import STOP_S
from novamesh_proto.join_code import format_join_code
from novamesh_proto.messages import JoinCode
from support.compose_file import COMPOSE, DOCKERFILE, ROOT, SERVICES, STAGES, TEXT, fill_in
from support.parties import COORDINATOR

OURS = {name: service for name, service in SERVICES.items() if "build" in service}
PROFILES = {profile for service in SERVICES.values() for profile in service["profiles"]}
EITHER = {"pool", "scale"}  # two forms of one thing, on the same port
COMMANDS = [
    (name, words)
    for name, service in OURS.items()
    for words in (service["command"], service["healthcheck"]["test"][1:])
]
# `#   VARIABLE=… docker compose VERB … SERVICE novamesh …      a remark`
TYPED = re.findall(r"^# {3}((?:\S+=\S+ )*docker compose .+?)(?: {4,}.*)?$", TEXT, re.MULTILINE)


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
    assert (set(SERVICES) | PROFILES) & set(words), line
    if "novamesh" in words:
        ours = words[words.index("novamesh") + 1 :]
        app.parse_args(ours, exit_on_error=False, print_error=False)


def test_no_line_of_the_comments_was_overlooked() -> None:
    head = TEXT.partition("\nname:")[0]
    assert len(TYPED) == head.count("docker compose ") == 11


def test_every_variable_is_read_by_one_of_our_parts() -> None:
    in_services = {name for each in OURS.values() for name in each.get("environment", {})}
    typed_or_filled_in = set(re.findall(r"\b(NOVAMESH_[A-Z_]+)", TEXT))
    in_the_image = set(re.findall(r"\b(NOVAMESH_[A-Z_]+)=", DOCKERFILE))
    assert {"NOVAMESH_JOIN", "NOVAMESH_COORDINATOR_ADDRESS"} <= in_services
    assert in_the_image == {HOME_VARIABLE}
    assert in_services | typed_or_filled_in | in_the_image <= known_variables()


@pytest.mark.parametrize("service", ["coordinator", "coordinator-1", "coordinator-2"])
def test_coordinators_settings_are_accepted_as_a_whole(service: str, tmp_path: Path) -> None:
    """Addresses, broker, database and files, as its own command line and environment say them."""
    words = [word for word in SERVICES[service]["command"] if word.startswith("--")]
    pairs = [word.removeprefix("--").partition("=")[::2] for word in words]
    flags = {name.replace("-", "_"): value for name, value in pairs if name != "standby"}
    folder = find_coordinator(tmp_path)
    config = load_config(folder, {"network": "mypool"} | flags, SERVICES[service]["environment"])
    assert config.listen == "0.0.0.0:7700"
    assert {each.partition(":")[0] for each in config.address.split(",")} <= set(SERVICES)


@pytest.mark.parametrize("node", ["node", "node-cpu"])
def test_a_nodes_broker_is_one_variable_and_two_files(
    node: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = format_join_code(JoinCode("127.0.0.1:7700", COORDINATOR.node_id, "mypool", b"invite"))
    assert configure_node(node, tmp_path, code, monkeypatch).broker is None
    given = {"NOVAMESH_NODE_MQTT": "mqtts://mosquitto"}
    broker = configure_node(node, tmp_path, code, monkeypatch, given).broker
    assert broker is not None
    assert str(broker) == "mqtts://mosquitto:8883"
    assert Path(broker.password_file).name == "node_mqtt_password"
    assert Path(broker.ca_file).name == "node_mqtt_ca"


@pytest.mark.parametrize(
    ("service", "node"), [("coordinator", "node-cpu"), ("coordinator", "node")]
)
def test_an_invite_leads_the_node_to_the_coordinators_service(
    service: str,
    node: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in SERVICES[service]["environment"].items():
        monkeypatch.setenv(name, value)
    home = str(tmp_path / "coordinator")
    assert main(["coordinator", "init", "--name", "mypool", "--home", home]) == 0
    capsys.readouterr()
    assert main(["coordinator", "invite", "--home", home]) == 0
    config = configure_node(node, tmp_path / "node", capsys.readouterr().out, monkeypatch)
    host, _, port = config.pool.address.partition(":")
    assert host == service
    assert f"{port}:{port}" in SERVICES[host]["ports"]
    assert f"--listen=0.0.0.0:{port}" in SERVICES[host]["command"]
    assert (config.joining, config.pool.network) == (True, "mypool")
    assert (config.models, config.device) == (("nova-pico",), {"node": "all"}.get(node, "cpu"))


def configure_node(
    service: str,
    home: Path,
    code: str,
    monkeypatch: pytest.MonkeyPatch,
    more: Mapping[str, str] = MappingProxyType({}),
) -> NodeConfig:
    """What the node's command is set to when NOVAMESH_JOIN holds that code."""
    seen: list[NodeConfig] = []

    async def serve(config: NodeConfig, voice: daemon.Voice) -> None:
        seen.append(config)

    monkeypatch.setattr(daemon, "serve", serve)
    monkeypatch.setattr(logs, "configure", lambda *_: None)
    monkeypatch.setenv(HOME_VARIABLE, str(home))
    given = {JOIN_VARIABLE: code.strip(), **more}
    for name, value in SERVICES[service]["environment"].items():
        monkeypatch.setenv(name, fill_in(value, given))
    assert main(SERVICES[service]["command"][1:]) == 0
    return seen[0]


def test_what_a_part_writes_is_on_a_volume() -> None:
    """Our images are read-only and have one folder for everything of ours."""
    home = re.search(rf"{HOME_VARIABLE}=(\S+)", DOCKERFILE)
    assert home is not None
    for service in OURS.values():
        assert [mount.partition(":")[2] for mount in service["volumes"]] == [home[1]]


def test_volumes_are_named_so_that_they_outlive_down() -> None:
    used = set()
    for service in SERVICES.values():
        for mount in service.get("volumes", ()):
            source, _, inside = mount.partition(":")
            if source.startswith("./"):
                assert inside.endswith(":ro"), mount
                assert (ROOT / source).exists(), mount
            else:
                used.add(source)
    assert used == set(COMPOSE["volumes"])


@pytest.mark.parametrize("name", SERVICES)
def test_service_is_hardened(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert "privileged" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert {"max-size", "max-file"} <= set(service["logging"]["options"])
    assert "/tmp" in service["tmpfs"]
    assert service["healthcheck"]["test"][0] == "CMD"
    if "user" in service:
        assert re.fullmatch(r"[1-9]\d*:\d+", service["user"])
    else:
        users = [words for verb, words in steps(service["build"]["target"]) if verb == "USER"]
        assert re.fullmatch(r"[1-9]\d*:\d+", users[-1])


def steps(name: str) -> tuple[tuple[str, str], ...]:
    """A target's instructions, after those of the stages of ours that it is made from."""
    stage = STAGES[name]
    return (steps(stage.base) if stage.base in STAGES else ()) + stage.steps


def test_images_are_pinned_and_ours_carry_our_version() -> None:
    version = re.search(r'(?m)^version = "(.+)"', (ROOT / "pyproject.toml").read_text())
    assert version is not None
    for name, service in SERVICES.items():
        _, _, tag = service["image"].rpartition(":")
        assert re.search(r"\d+\.\d+\.\d+|\d+\.\d+-", tag), service["image"]
        assert (tag == version[1]) == (name in OURS), service["image"]
    for image in re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE):
        assert re.fullmatch(r"python:3\.11\.\d+(-slim)?-bookworm|slim", image)


def test_the_dockerfile_takes_nothing_that_is_not_there_or_ignored() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    for words in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE):
        for source in words.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert source not in ignored
    assert (ROOT / "constraints.txt").exists()
    copied = {line.split()[1] for line in re.findall(r"^COPY [a-z].*$", DOCKERFILE, re.MULTILINE)}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["scikit-build"]
    wanted = (*project["wheel"]["packages"], project["cmake"]["source-dir"])
    assert {each.partition("/")[0] for each in wanted} <= copied
    assert {"deploy", ".git", ".venv"} <= set(ignored), "secrets lie below deploy"


def test_secrets_come_from_files_that_no_commit_and_no_image_has() -> None:
    used = set()
    for service in SERVICES.values():
        for secret in service.get("secrets", ()):
            used.add(secret if isinstance(secret, str) else secret["source"])
        for word in (*service.get("command", ()), *service.get("environment", {}).values()):
            for name in re.findall(r"/run/secrets/(\w+)", word):
                assert name in service["secrets"], word
    assert used == set(COMPOSE["secrets"])
    for name, each in COMPOSE["secrets"].items():
        lent = name.startswith("node_")  # by whoever runs the broker; nothing where there is none
        file = fill_in(each["file"], {})
        assert file == "/dev/null" if lent else Path(file).parent.as_posix() == "deploy/secrets"
    assert "deploy/secrets/\n" in (ROOT / ".gitignore").read_text()


def test_what_is_published_beyond_this_machine_is_meant_to_be() -> None:
    open_to_all: dict[str, list[str]] = {}
    for name, service in SERVICES.items():
        for port in service.get("ports", ()):
            if not port.startswith("127.0.0.1:"):
                open_to_all.setdefault(port.partition(":")[0], []).append(name)
    assert open_to_all == {
        "7700": ["coordinator", "coordinator-1"], "7702": ["coordinator-2"], "8883": ["mosquitto"],
    }  # fmt: skip
    first, second = (set(SERVICES[name]["profiles"]) for name in open_to_all["7700"])
    assert {*first, *second} == EITHER


def test_the_database_reaches_nobody_and_only_replicas_reach_it() -> None:
    assert COMPOSE["networks"]["database"] == {"internal": True}
    assert SERVICES["postgres"]["networks"] == ["database"]
    assert "ports" not in SERVICES["postgres"]
    on_it = {name for name, each in SERVICES.items() if "database" in each.get("networks", ())}
    assert on_it == {"postgres", "coordinator-1", "coordinator-2"}


def test_whoever_is_waited_for_is_healthy_first_and_in_the_same_profile() -> None:
    for name, service in SERVICES.items():
        for other, wish in service.get("depends_on", {}).items():
            assert wish["condition"] == "service_healthy"
            beside = set(service["profiles"]) <= set(SERVICES[other]["profiles"])
            assert beside is wish.get("required", True), f"{name} waits for {other}"


def test_a_node_has_time_to_end_its_work() -> None:
    for name in ("node", "node-cpu"):
        assert SERVICES[name]["stop_grace_period"] == f"{STOP_S}s"


def test_only_the_node_for_gpus_gets_them() -> None:
    wants = {name for name, service in SERVICES.items() if "deploy" in service}
    assert wants == {"node"}
    (device,) = SERVICES["node"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    assert "-slim" not in next(
        line for line in DOCKERFILE.splitlines() if line.endswith("AS node-cuda")
    ), "our GPU kernels need a C compiler"


def test_compose_file_follows_the_schema() -> None:
    checker = Path(sys.executable).parent / "check-jsonschema"
    done = subprocess.run(
        [checker, "--builtin-schema", "vendor.compose-spec", ROOT / "compose.yaml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_every_part_has_its_profile() -> None:
    assert {"pool", "node", "node-cpu", "scale", "observe"} == PROFILES
