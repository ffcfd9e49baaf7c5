"""What is mounted into other people's images, read here by the programs that read it there.

Prometheus, Mosquitto, PostgreSQL and systemd are the real ones, of Debian's packages where this
machine has none. Grafana has no package: its files are checked by their structure, and every metric
that a dashboard or an alert names is one that a coordinator really exports.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import socket
import ssl
import stat
import subprocess
import time
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import aiomqtt
import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families
from ruamel.yaml import YAML

from novamesh.cli import app
from novamesh_coordinator.metrics import Metrics
from novamesh_coordinator.pool_service import PoolService
from novamesh_proto.broker import read_broker
from novamesh_proto.names import EVERY_NODE, TOPIC_DESCRIPTOR, node_topic
from support.compose_file import ROOT, SERVICES, TEXT
from support.debian_packages import tool
from support.ports import free_port
from support.postgres_server import PostgresServer, find_programs
from support.table import Table

pytestmark = pytest.mark.timeout(400)  # the first time, packages are fetched
DEPLOY = ROOT / "deploy"
PROMETHEUS, ALERTS = DEPLOY / "prometheus/prometheus.yml", DEPLOY / "prometheus/alerts.yml"
DASHBOARDS = sorted((DEPLOY / "grafana/dashboards").glob("*.json"))
SYSTEM_UNIT = DEPLOY / "systemd" / "novamesh-coordinator.service"
EXPOSURE_MOST = 15  # systemd's own scale, 0 to 100
OVERRULED = {"listen_addresses", "max_connections", "shared_buffers"}
SERVED_CONFIG = "/etc/postgresql/postgresql.conf"
COLUMNS = 24  # of a Grafana dashboard


def load(path: Path) -> Any:
    return YAML(typ="safe", pure=True).load(path.read_text())


def run(program: str, package: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    found = tool(program, package)
    return subprocess.run(
        [found.path, *words], env=found.environment(), capture_output=True, text=True, check=False
    )


def panels() -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            yield path, panel


def expressions() -> list[str]:
    """Everything in PromQL that we ship."""
    drawn = [target["expr"] for _, panel in panels() for target in panel["targets"]]
    alerts = [rule["expr"] for group in load(ALERTS)["groups"] for rule in group["rules"]]
    return drawn + alerts


def exported() -> dict[str, set[str]]:
    """Every sample that a coordinator's page has, with its labels and those Prometheus adds."""
    metrics = Metrics()
    metrics.observe_call("Match", "ok", 0.1)
    metrics.count_refusal("replayed")
    metrics.count_unfit("stale")
    page = metrics.collect(Table().core, healthy=True, tasks=1).decode()
    found: dict[str, set[str]] = {"up": {"job", "instance"}}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            found.setdefault(sample.name, {"job", "instance"}).update(sample.labels)
    return found


def named(expression: str) -> set[str]:
    """The metrics that an expression reads."""
    plain = re.sub(r'"[^"]*"', "", expression)
    plain = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\b(?:by|on|without) *\([^)]*\)", " ", plain)
    words = re.findall(r"\b([a-z_:][\w:]*)\b(?! *\()", plain)
    return set(words) - {"and", "or", "unless", "bool"}


def labels(expression: str) -> set[str]:
    grouped = re.findall(r"\bby *\(([^)]*)\)", expression)
    matched = re.findall(r'(\w+) *(?:=~|!~|!=|=)(?=")', expression)
    return set(matched) | {word.strip() for words in grouped for word in words.split(",")}


def test_every_metric_and_label_is_one_that_a_coordinator_exports() -> None:
    known = exported()
    for expression in expressions():
        names = named(expression)
        assert names, expression
        assert names <= set(known), expression
        assert labels(expression) <= set().union(*(known[name] for name in names)), expression


def test_streams_are_left_out_by_the_names_of_their_methods() -> None:
    left_out = {word for each in expressions() for word in re.findall(r'method!~"([^"]*)"', each)}
    assert left_out == {"Attach|Watch"}
    assert hasattr(PoolService, "Watch")


def test_prometheus_takes_its_configuration_and_every_expression(tmp_path: Path) -> None:
    inside = SERVICES["prometheus"]["volumes"]
    assert f"./{ALERTS.relative_to(ROOT)}:{load(PROMETHEUS)['rule_files'][0]}:ro" in inside
    drawn = [{"record": f"drawn:{n}", "expr": expr} for n, expr in enumerate(expressions())]
    (tmp_path / "drawn.yml").write_text(json.dumps({"groups": [{"name": "drawn", "rules": drawn}]}))
    config = PROMETHEUS.read_text().replace("/etc/prometheus/alerts.yml", str(ALERTS))
    (tmp_path / "prometheus.yml").write_text(config)
    for words in (("config", tmp_path / "prometheus.yml"), ("rules", tmp_path / "drawn.yml")):
        done = run("promtool", "prometheus", "check", *words)
        assert done.returncode == 0, done.stderr
        assert "SUCCESS" in done.stdout


def test_prometheus_watches_where_coordinators_are() -> None:
    (watched,) = load(PROMETHEUS)["scrape_configs"][0]["dns_sd_configs"]
    for name in ("coordinator", "coordinator-1", "coordinator-2"):
        aliases = SERVICES[name]["networks"]["default"]["aliases"]
        assert aliases == watched["names"]
        assert f"--http=0.0.0.0:{watched['port']}" in SERVICES[name]["command"]
    data = {mount.partition(":")[2] for mount in SERVICES["prometheus"]["volumes"]}
    paths = re.findall(r"=(/\S+)", " ".join(SERVICES["prometheus"]["command"]))
    assert {path if path in data else f"{path}:ro" for path in paths} <= data


def test_dashboards_are_whole() -> None:
    assert DASHBOARDS
    source = load(DEPLOY / "grafana/provisioning/datasources/prometheus.yml")["datasources"][0]
    for path in DASHBOARDS:
        board = json.loads(path.read_text())
        assert board["uid"]
        assert board["title"]
        assert board["schemaVersion"] >= 36
    seen: dict[Path, set[tuple[int, int]]] = {}
    numbers = [(path, panel["id"]) for path, panel in panels()]
    assert len(numbers) == len(set(numbers))
    for path, panel in panels():
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < COLUMNS
        assert not cells & seen.setdefault(path, set()), panel["title"]
        seen[path] |= cells
        assert panel["type"] in ("stat", "timeseries")
        assert panel["title"]
        assert panel["targets"]
        for each in (panel, *panel["targets"]):
            assert each["datasource"] == {"type": source["type"], "uid": source["uid"]}


def test_grafana_finds_its_prometheus_and_its_dashboards() -> None:
    source = load(DEPLOY / "grafana/provisioning/datasources/prometheus.yml")["datasources"][0]
    assert source["url"] == "http://prometheus:9090"
    provider = load(DEPLOY / "grafana/provisioning/dashboards/pool.yml")["providers"][0]
    mounts = SERVICES["grafana"]["volumes"]
    assert f"./deploy/grafana/dashboards:{provider['options']['path']}:ro" in mounts
    assert "./deploy/grafana/provisioning:/etc/grafana/provisioning:ro" in mounts


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    """What deploy/secrets.sh makes, for a broker that is dialled as localhost."""
    make_secrets(tmp_path / "secrets", "localhost")
    return tmp_path / "secrets"


def make_secrets(folder: Path, *words: str) -> str:
    done = subprocess.run(
        ["sh", DEPLOY / "secrets.sh", *words],
        env=os.environ | {"NOVAMESH_SECRETS": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_secrets_are_those_that_compose_names_and_are_made_once(secrets: Path) -> None:
    named_there = set(re.findall(r"file: deploy/secrets/(\S+?)\}", TEXT))
    before = {path.name: path.read_bytes() for path in secrets.iterdir()}
    assert named_there <= set(before)
    assert stat.S_IMODE(secrets.stat().st_mode) == 0o700
    for name in named_there:  # services have users of their own
        assert stat.S_IMODE((secrets / name).stat().st_mode) == 0o644
    assert stat.S_IMODE((secrets / "authority.key").stat().st_mode) == 0o600
    assert make_secrets(secrets, "another.example.org") == ""
    assert {path.name: path.read_bytes() for path in secrets.iterdir()} == before


def test_a_nodes_account_has_a_name_that_breaks_nothing(secrets: Path) -> None:
    for name in ("", "a:b", "a/../b", "two\nlines"):
        with pytest.raises(AssertionError):
            make_secrets(secrets, "--node", name)
    make_secrets(secrets, "--node", "12D3KooWnode")
    lines = (secrets / "mqtt_accounts").read_text().splitlines()
    assert [line.partition(":")[0] for line in lines] == ["coordinator", "12D3KooWnode"]


@pytest.fixture
def broker(tmp_path: Path, secrets: Path) -> Iterator[int]:
    """A real Mosquitto with the files that compose mounts, where it mounts them; its port."""
    container, port = tmp_path / "container", free_port()
    service = SERVICES["mosquitto"]
    mounted = {each.split(":")[1]: ROOT / each.split(":")[0] for each in service["volumes"]}
    files = dict(re.findall(r"^  (mqtt_\w+): \{file: deploy/secrets/(\S+)\}", TEXT, re.MULTILINE))
    mounted |= {each["target"]: secrets / files[each["source"]] for each in service["secrets"]}
    for inside, outside in mounted.items():
        path = container / inside.removeprefix("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(outside.read_bytes())
    config = container / "mosquitto/config/mosquitto.conf"
    text = config.read_text().replace("/mosquitto/config", str(config.parent))
    text = re.sub(r"(?m)^listener 8883$", f"listener {port} 127.0.0.1", text)
    config.write_text(f"{text}\nuser {'root' if os.geteuid() == 0 else os.getlogin()}\n")
    found = tool("mosquitto")
    with (tmp_path / "log").open("w+") as log:
        process = subprocess.Popen(
            [found.path, "-c", config], env=found.environment(), stdout=log, stderr=log
        )
        try:
            wait_for(port, process, tmp_path / "log")
            yield port
        finally:
            process.kill()
            process.wait()


def wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    end_s = time.monotonic() + 20
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end_s, log.read_text()
        time.sleep(0.02)


async def test_mosquitto_takes_what_compose_mounts_and_lets_the_coordinator_in(
    broker: int, secrets: Path
) -> None:
    """By the very words of the coordinator's command."""
    words = dict(each.split("=", 1) for each in SERVICES["coordinator"]["command"] if "=" in each)
    where = read_broker(
        words["--mqtt"],
        words["--mqtt-password-file"].replace("/run/secrets", str(secrets)),
        str(secrets / "mqtt_ca.crt"),
    )
    assert where is not None
    assert (where.host, where.port, where.tls) == ("mosquitto", 8883, True)
    password = (secrets / "mqtt_password").read_text().strip()
    assert where.password_file == str(secrets / "mqtt_password")
    trust = ssl.create_default_context(cafile=where.ca_file)

    def client(password: str) -> aiomqtt.Client:
        return aiomqtt.Client(
            "localhost", broker, username=where.user, password=password, tls_context=trust
        )

    with pytest.raises(aiomqtt.MqttError):
        async with client("wrong"):
            pass
    async with client(password) as inside:
        topic = node_topic("mypool", EVERY_NODE, TOPIC_DESCRIPTOR)
        async with asyncio.timeout(10):
            granted = await inside.subscribe(topic, qos=1)
        assert [int(getattr(each, "value", each)) for each in granted] == [1]


def test_postgres_reads_what_compose_mounts_by_the_command_of_compose(tmp_path: Path) -> None:
    """Every name of the file, asked of the program itself with the words that compose gives it."""
    config = tmp_path / "postgresql.conf"
    config.write_text((DEPLOY / "postgres/postgresql.conf").read_text())
    program, *words = SERVICES["postgres"]["command"]
    words = [word.replace(SERVED_CONFIG, str(config)) for word in words]
    given = dict(re.findall(r"(?m)^(\w+) = '?([^'\n]*)", config.read_text()))
    read = {}
    for name in ("config_file", *given):
        command = [find_programs() / program, "-C", name, *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        read[name] = done.stdout.removesuffix("\n")
    assert read.pop("config_file") == str(config)
    figures = {name for name in given if given[name][0].isdigit()}  # told in other units
    assert {"shared_buffers", "tcp_user_timeout"} <= figures
    assert (read["shared_buffers"], read["tcp_user_timeout"]) == ("32768", "10000")  # 8 kB, ms
    wanted = {name: given[name] for name in given if name not in figures}
    assert {name: read[name] for name in wanted} == wanted | {"wal_compression": "pglz"}
    mounted = {mount.split(":")[1] for mount in SERVICES["postgres"]["volumes"]}
    assert {given["data_directory"], given["hba_file"], SERVED_CONFIG} == mounted


def test_grafanas_health_check_is_one_that_its_images_wget_makes() -> None:
    """BusyBox's, as in Alpine, and of a server that is no Grafana."""
    words = SERVICES["grafana"]["healthcheck"]["test"]
    with ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as server:
        serving = Thread(target=server.serve_forever)
        serving.start()
        for path, status in (("/", 0), ("/api/health", 1)):
            url = f"http://127.0.0.1:{server.server_port}{path}"
            assert words[-1].startswith("http://127.0.0.1:3000/")
            assert run("busybox", "busybox", *words[1:-1], url).returncode == status
        server.shutdown()
        serving.join()


def test_postgres_takes_its_settings_and_lets_in_who_knows_the_password(tmp_path: Path) -> None:
    text = (DEPLOY / "postgres/postgresql.conf").read_text()
    rules = (DEPLOY / "postgres/pg_hba.conf").read_text()
    text, moved = re.subn(r"(?m)^(?:data_directory|hba_file|ident_file) = .*\n", "", text)
    assert moved == 3
    with PostgresServer() as server:
        with server.connect() as own:
            data = Path(str(own.execute("show data_directory").fetchone()[0]))  # type: ignore[index]
            own.execute("alter role novamesh password 'right'")
            own.execute("create database novamesh")
        with (data / "postgresql.conf").open("a") as config:
            config.write(text)
        server.stop()
        server.start()
        with server.connect() as own:
            # The test's server has its own of these on its command line; it would not have
            # started with a line that it cannot read.
            unheard = own.execute("select name from pg_file_settings where error is not null")
            assert {name for (name,) in unheard} == OVERRULED
            (data / "pg_hba.conf").write_text(rules)
            own.execute("select pg_reload_conf()")
            found = own.execute("select error from pg_hba_file_rules").fetchall()
            assert found == [(None,)] * 2
            address = f"host=127.0.0.1 port={server.port} user=novamesh connect_timeout=10"
            with psycopg.connect(f"{address} dbname=novamesh password=right") as inside:
                assert inside.execute("select 1").fetchone() == (1,)
            for other in ("dbname=novamesh password=wrong", "dbname=postgres password=right"):
                with pytest.raises(psycopg.OperationalError):
                    psycopg.connect(f"{address} {other}")


def test_systemd_finds_nothing_to_say_about_the_coordinators_unit(tmp_path: Path) -> None:
    unit = tmp_path / SYSTEM_UNIT.name
    unit.write_text(SYSTEM_UNIT.read_text().replace("/opt/novamesh/bin/novamesh", "/bin/true"))
    said = run("systemd-analyze", "systemd", "verify", "--man=no", unit)
    assert (said.returncode, said.stdout, said.stderr) == (0, "", "")
    words = ("security", "--offline=true", f"--threshold={EXPOSURE_MOST}", unit)
    said = run("systemd-analyze", "systemd", *words)
    assert said.returncode == 0, said.stdout[-200:]


def test_the_guides_commands_parse_and_its_files_exist() -> None:
    text = (ROOT / "docs/deploy.md").read_text()
    blocks = "\n".join(re.findall(r"```console\n(.*?)```", text, re.DOTALL))
    lines = [line for line in blocks.replace("\\\n", "").splitlines() if "pg_" not in line]
    pattern = r"(?:^|\s)(?:/opt/novamesh/bin/)?novamesh ([^$>|\n]+)"
    ours = re.findall(pattern, "\n".join(lines), re.MULTILINE)
    ours += re.findall(r"`novamesh ([^`]+)`", text)
    assert len(ours) > 15
    for words in ours:
        app.parse_args(shlex.split(words), exit_on_error=False, print_error=False)
    for path in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (ROOT / "docs" / path).exists(), path
    for profile in re.findall(r"^\| `([\w-]+)` \|", text, re.MULTILINE):
        assert any(profile in service["profiles"] for service in SERVICES.values())
