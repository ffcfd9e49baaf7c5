"""The profiles of compose.yaml, run as compose would, by its own words: every path, name, port,
secret, variable, user and mount is taken from it, and what the comments say is what is typed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.compose_file import ROOT, SERVICES
from support.containers import Containers
from support.debian_packages import tool
from support.network_beds import Internet, missing
from support.postgres_server import find_programs

pytestmark = [pytest.mark.timeout(400), pytest.mark.skipif(bool(missing()), reason=missing())]
SERVED_CONFIG = "/etc/postgresql/postgresql.conf"
CONFIG = "/mosquitto/config/mosquitto.conf"
# What the server that runs has of the files that it was given: lines, and what is wrong with one.
READ_BACK = """
import json, pathlib, sys, psycopg
password = pathlib.Path(sys.argv[1]).read_text().strip()
with psycopg.connect(f"host=postgres user=novamesh dbname=novamesh password={password}") as server:
    lines = server.execute("select name, sourcefile, applied, error from pg_file_settings")
    rules = server.execute("select file_name, error from pg_hba_file_rules")
    print(json.dumps([lines.fetchall(), rules.fetchall()]))
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where every user may come: volumes and secrets lie in it."""
    made = Path(tempfile.mkdtemp(prefix="nm-", dir="/var/tmp"))  # not hidden by a service's /tmp
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@pytest.fixture
def secrets(folder: Path) -> Path:
    make_secrets(folder / "secrets")
    return folder / "secrets"


def make_secrets(folder: Path, *words: str) -> None:
    subprocess.run(
        ["sh", ROOT / "deploy" / "secrets.sh", *words],
        env=os.environ | {"NOVAMESH_SECRETS": str(folder)},
        check=True,
        capture_output=True,
    )


def start_broker(containers: Containers) -> None:
    mosquitto = tool("mosquitto")
    containers.up("mosquitto", command=[mosquitto.path, "-c", CONFIG], more=mosquitto.env)
    program, *words = SERVICES["mosquitto"]["healthcheck"]["test"][1:]
    nc = tool(f"{program}.openbsd", "netcat-openbsd")
    containers.until(lambda: containers.succeeds("mosquitto", nc.path, *words))


def nodes(containers: Containers, coordinator: str) -> list[dict[str, Any]]:
    asked = ("novamesh", "coordinator", "nodes", "--json")
    return json.loads(containers.run(coordinator, *asked))


def begin_pool(containers: Containers) -> str:
    """Broker and coordinator, healthy; a join code."""
    containers.run("coordinator", "novamesh", "coordinator", "init", "--name", "mypool")
    start_broker(containers)
    containers.up("coordinator")
    containers.until(lambda: containers.healthy("coordinator"))
    return containers.run("coordinator", "novamesh", "coordinator", "invite").strip()


def test_a_service_may_write_nothing_but_its_volume(folder: Path, secrets: Path) -> None:
    places = ("/", "/etc", "/opt", "/tmp", "/var/lib/novamesh")
    tried = f"id -u; for at in {' '.join(places)}; do touch $at/x 2>/dev/null && echo $at; done; :"
    with Internet() as net, Containers(net, folder, secrets, ("coordinator",)) as containers:
        said = containers.run("coordinator", "sh", "-c", tried).split()
    assert said == ["10001", "/tmp", "/var/lib/novamesh"]


def test_pool_and_a_node_that_is_found_by_the_broker_too(folder: Path, secrets: Path) -> None:
    names = ("mosquitto", "coordinator", "node-cpu")
    with Internet() as net, Containers(net, folder, secrets, names) as containers:
        code = begin_pool(containers)
        node = containers.up("node-cpu", {"NOVAMESH_JOIN": code})
        containers.until(lambda: containers.healthy("node-cpu"))
        containers.until(lambda: nodes(containers, "coordinator"))
        (member,) = nodes(containers, "coordinator")
        assert member["attached"]
        assert node.stop() == 0

        # What was joined and made is on the volume: no code is needed again. An account at the
        # broker, made meanwhile, is known there without a restart.
        peer = containers.run("node-cpu", "novamesh", "key", "show", "--node").strip()
        assert peer == member["node"]
        make_secrets(secrets, "--node", peer)
        containers.hang_up("mosquitto")
        given = {
            "NOVAMESH_NODE_MQTT": "mqtts://mosquitto",
            "MQTT_PASSWORD_FILE": str(secrets / f"node_{peer}"),
            "MQTT_CA_FILE": str(secrets / "mqtt_ca.crt"),
        }
        containers.up("node-cpu", given)
        containers.until(lambda: containers.healthy("node-cpu"))
        status = ("novamesh", "node", "status")
        containers.until(lambda: "reached (MQTT" in containers.run("node-cpu", *status))
        assert [each["node"] for each in nodes(containers, "coordinator")] == [peer]


def start_postgres(containers: Containers) -> None:
    """What the image does before its first start, then the command of compose.yaml."""
    service = SERVICES["postgres"]
    environment, programs = service["environment"], find_programs()
    data = "/var/lib/postgresql/data"
    options = environment["POSTGRES_INITDB_ARGS"].split()
    password = f"--pwfile={environment['POSTGRES_PASSWORD_FILE']}"
    user = f"--username={environment['POSTGRES_USER']}"
    containers.run("postgres", programs / "initdb", *options, user, password, data)
    create = f"echo 'create database novamesh' | {programs}/postgres --single -D {data} postgres"
    containers.run("postgres", "sh", "-c", create)
    _, *words = service["command"]
    containers.up("postgres", command=[programs / "postgres", *words])
    program, *words = service["healthcheck"]["test"][1:]
    containers.until(lambda: containers.succeeds("postgres", programs / program, *words))
    assert "Data page checksum version:           1" in containers.run(
        "postgres", programs / "pg_controldata", data
    )


def test_replicas_of_which_the_second_takes_over(folder: Path, secrets: Path) -> None:
    names = ("mosquitto", "postgres", "coordinator-1", "coordinator-2", "node-cpu")
    with Internet() as net, Containers(net, folder, secrets, names) as containers:
        containers.run("coordinator-1", "novamesh", "coordinator", "init", "--name", "mypool")
        start_broker(containers)
        start_postgres(containers)
        first = containers.up("coordinator-1")
        secret = SERVICES["postgres"]["environment"]["POSTGRES_PASSWORD_FILE"]
        asked = (Path(sys.executable).name, "-c", READ_BACK, secret)
        lines, rules = json.loads(containers.run("coordinator-1", *asked))
        config = (ROOT / "deploy/postgres/postgresql.conf").read_text()
        assert {name for name, *_ in lines} == set(re.findall(r"(?m)^(\w+) =", config))
        assert {tuple(rest) for _, *rest in lines} == {(SERVED_CONFIG, True, None)}
        assert {tuple(rule) for rule in rules} == {("/etc/postgresql/pg_hba.conf", None)}
        health = ("novamesh", "coordinator", "health", "--http=127.0.0.1:7701")
        containers.until(lambda: containers.healthy("coordinator-1"))
        containers.until(lambda: containers.run("coordinator-1", *health) == "serving\n")
        containers.up("coordinator-2")
        containers.until(lambda: containers.healthy("coordinator-2"))
        assert containers.run("coordinator-2", *health) == "standing by\n"
        code = containers.run("coordinator-1", "novamesh", "coordinator", "invite").strip()
        containers.up("node-cpu", {"NOVAMESH_JOIN": code})
        containers.until(lambda: containers.healthy("node-cpu"))
        containers.until(lambda: nodes(containers, "coordinator-1"))
        first.kill()
        containers.until(lambda: containers.run("coordinator-2", *health) == "serving\n")
        containers.until(lambda: nodes(containers, "coordinator-2")[0]["attached"])


def test_prometheus_starts_with_its_command_and_has_all_its_rules(
    folder: Path, secrets: Path
) -> None:
    service, found = SERVICES["prometheus"], tool("prometheus")
    # Debian's promtool is older than `check healthy`; the page that it asks is the same.
    assert service["healthcheck"]["test"][-1] == "--url=http://127.0.0.1:9090"
    ask = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1]).read().decode())"
    with Internet() as net, Containers(net, folder, secrets, ("prometheus",)) as containers:
        containers.up("prometheus", command=[found.path, *service["command"]], more=found.env)

        def page(path: str) -> str:
            url = f"http://127.0.0.1:9090{path}"
            return containers.run("prometheus", sys.executable, "-c", ask, url)

        asked = (sys.executable, "-c", ask, "http://127.0.0.1:9090/-/healthy")
        containers.until(lambda: containers.succeeds("prometheus", *asked))
        groups = json.loads(page("/api/v1/rules"))["data"]["groups"]
        assert [each["name"] for each in groups] == ["pool"]
        assert len(groups[0]["rules"]) == (ROOT / "deploy/prometheus/alerts.yml").read_text().count(
            "- alert: "
        )
