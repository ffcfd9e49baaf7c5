"""Every screen of `novamesh coordinator` equals its golden transcript; a real server behind it."""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from novamesh.cli import main
from novamesh_coordinator import cli
from novamesh_coordinator.invite import check_invite, invite_secret, read_invite
from novamesh_coordinator.key_file import load_key
from novamesh_proto.errors import NovaMeshError
from novamesh_proto.identity import format_node_id
from novamesh_proto.join_code import parse_join_code
from novamesh_proto.messages import NodeView
from support.parties import NODE, party
from support.transcripts import SCENE, Exchange, read_transcript, settle

FOLDER = Path(__file__).parent / "transcripts"
UPDATE = os.environ.get("NOVAMESH_UPDATE_TRANSCRIPTS") == "1"
PROGRAM = "from novamesh.cli import main; import sys; sys.exit(main(sys.argv[1:]))"


class Stage:
    """An owner's home and perhaps a server."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.home = home
        self.server: subprocess.Popen[str] | None = None
        self.patch = monkeypatch
        for name in [name for name in os.environ if name.startswith("NOVAMESH_")]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("NOVAMESH_HOME", str(home))
        monkeypatch.setenv("NO_COLOR", "1")

    def set(self, scene: str) -> None:
        """One `@` line."""
        verb, _, rest = scene.partition(" ")
        folder = self.home / "coordinator"
        if verb == "serve":
            self.serve()
        elif verb == "stop":
            self.stop()
        elif verb == "without":
            self.patch.setitem(sys.modules, rest, None)
            for name in ("server", "store", "owner_link"):
                self.patch.delitem(sys.modules, f"novamesh_coordinator.{name}", raising=False)
        elif verb == "file":
            name, _, text = rest.partition(" ")
            (folder / name).write_text(text.replace("\\n", "\n"))
        elif verb == "chmod":
            mode, _, name = rest.partition(" ")
            (folder / name).chmod(int(mode, 8))
        else:
            raise ValueError(scene)

    def serve(self) -> str:
        """Start a real server; its ready line."""
        command = [sys.executable, "-c", PROGRAM, "coordinator", "serve", "--http", "127.0.0.1:0"]
        self.server = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.server.stdout is not None
        return self.server.stdout.readline()

    def stop(self) -> str:
        """Stop it; what it logged."""
        if self.server is None:
            return ""
        self.server.send_signal(signal.SIGTERM)
        _, log = self.server.communicate(timeout=20)
        assert self.server.returncode == 0
        self.server = None
        return log

    def _own_id(self) -> str:
        """The coordinator's PeerId, once there is one that may be read."""
        try:
            return format_node_id(load_key(self.home / "coordinator" / "coordinator.key").node_id)
        except NovaMeshError:
            return ""

    def play(self, exchange: Exchange) -> Exchange:
        """Type it."""
        for line in exchange.before:
            if line.startswith(SCENE):
                self.set(line[2:])
        out, err = io.StringIO(), io.StringIO()
        own = self._own_id()
        words = exchange.words({"SPAMMER": format_node_id(party("spammer").node_id), "SELF": own})
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(words)
        known = {str(self.home): "HOME"}
        return Exchange(
            exchange.command,
            [],
            status,
            settle(_steady(out.getvalue()), known),
            settle(_steady(err.getvalue()), known),
            exchange.before,
        )


def _steady(text: str) -> str:
    """Ids, codes and process numbers replaced."""
    text = re.sub(r"12D3KooW\w{44}", "PEERID", text)
    text = re.sub(r"nm1[a-z2-7]{60,}", "CODE", text)
    text = re.sub(r"process \d+", "process PID", text)
    return re.sub(r"(\"(?:expires_at_ms|took_ms)\": )\d+", r"\1N", text)


@pytest.fixture(autouse=True)
def _logs_as_before() -> Iterator[None]:
    yield
    structlog.reset_defaults()


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.txt")), ids=lambda path: path.stem)
def test_screens(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = read_transcript(path)
    stage = Stage(tmp_path, monkeypatch)
    try:
        played = [stage.play(exchange) for exchange in expected]
    finally:
        stage.stop()
    if UPDATE:
        path.write_text("\n".join(line for one in played for line in one.lines()) + "\n")
    for was, wanted in zip(played, expected, strict=True):
        assert was.lines() == wanted.lines()


def test_a_server_says_when_it_is_ready_and_stops_on_a_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(tmp_path, monkeypatch)
    assert main(["coordinator", "init", "--listen", "127.0.0.1:0"]) == 0
    ready = stage.serve()
    assert re.fullmatch(r"coordinator ready on 127\.0\.0\.1:\d+\n", ready)
    address = (tmp_path / "coordinator" / "address").read_text()
    assert address == ready.split()[-1] + "\n"
    log = stage.stop()
    assert "log read" in log
    assert "stopping" in log


def test_an_invite_names_the_pool_and_can_be_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Stage(tmp_path, monkeypatch)
    main(["coordinator", "init", "--name", "lab", "--address", "pool.example.org:9"])
    capsys.readouterr()
    main(["coordinator", "invite", "--uses", "2"])
    code = parse_join_code(capsys.readouterr().out)
    key = load_key(tmp_path / "coordinator" / "coordinator.key")
    assert (code.network, code.address, code.coordinator) == (
        "lab",
        "pool.example.org:9",
        key.node_id,
    )
    invite = read_invite(invite_secret(key), code.invite)
    assert invite.uses == 2
    check_invite(invite, 1, invite.expires_ms - 1)


def test_members_dial_what_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Stage(tmp_path, monkeypatch)
    assert main(["coordinator", "init", "--listen", "0.0.0.0:7700"]) == 0
    assert main(["coordinator", "invite"]) == 78
    monkeypatch.setenv("NOVAMESH_COORDINATOR_ADDRESS", "coordinator:7700")
    capsys.readouterr()
    assert main(["coordinator", "invite"]) == 0
    assert parse_join_code(capsys.readouterr().out).address == "coordinator:7700"


def test_nodes_are_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    view = NodeView(NODE.node_id, True, ("nova-pico",), "EPYC", 2, 1, 7, 900, 41.23, 0)
    away = NodeView(party("b").node_id, False, (), "EPYC", 2, 0, 0, 0, 0.0, 0, "banned: spam")
    cli._print_nodes((view, away))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == [
        *("NODE", "STATE", "FREE", "JOBS", "TOKENS", "TOK/S", "MODELS", "NOTE")
    ]
    assert lines[1].split()[1:] == ["attached", "1/2", "7", "900", "41.2", "nova-pico"]
    assert lines[2].split()[1:] == ["away", "0/2", "0", "0", "-", "-", "banned:", "spam"]


def test_the_command_line_loads_without_its_heavy_parts() -> None:
    code = (
        "import sys, novamesh_coordinator.cli;"
        "sys.exit(bool({'grpc', 'sqlalchemy', 'alembic'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
