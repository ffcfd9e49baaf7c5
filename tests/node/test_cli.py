"""The commands, as somebody types them, against a scripted daemon on its socket."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from novamesh.cli import main
from novamesh.config import find_places
from novamesh_node import control, recommend
from novamesh_node.pull import Puller
from novamesh_node.recommend import Memory
from novamesh_proto.errors import Code, NovaMeshError
from support.tiny_profile import save_tiny_profile

STATUS: dict[str, Any] = {
    "node": "12D3KooWnode", "phase": "idle", "reason": "", "resumes_at_ms": 0, "slots": 4,
    "free_slots": 3, "running": 2, "taken": 9, "pool": "testnet", "address": "127.0.0.1:7700",
    "attached": True, "trouble": "", "next_try_s": 0, "clock_offset_ms": -3,
    "hardware": "a machine",
    "models": [], "version": "0.1.0", "pid": 7, "uptime_s": 11,
}  # fmt: skip


class Daemon:
    """Answers the control socket of a home from a thread, and remembers what it was asked."""

    def __init__(self, home: Path) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.refusal: NovaMeshError | None = None
        self.status = STATUS
        self._home = home
        self._up = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    def __enter__(self) -> Daemon:
        self._thread.start()
        assert self._up.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(RuntimeError):  # it may have been told to stop already
            self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()

    async def _serve(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        async with control.listen(find_places(self._home).node_socket, self._handle):
            self._up.set()
            await self._over.wait()

    async def _handle(self, command: str, arguments: Mapping[str, Any]) -> control.Reply:
        self.asked.append((command, dict(arguments)))
        if self.refusal is not None:
            raise self.refusal
        if command == "stop":
            self._over.set()
        if command == "why":
            return {"accepting": True, "reason": "", "considered": 0, "chosen": 0, "reasons": []}
        return self.status | {"reason": "the owner paused this node" if command == "pause" else ""}


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with Daemon(tmp_path) as made:
        yield made


def novamesh(*arguments: str | Path) -> int:
    return main([str(each) for each in arguments])


def test_status_and_why(daemon: Daemon, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert novamesh("node", "status", "--home", tmp_path) == 0
    assert "state    idle" in capsys.readouterr().out
    assert novamesh("node", "status", "--json", "--home", tmp_path) == 0
    assert json.loads(capsys.readouterr().out) == STATUS
    assert novamesh("node", "why", "--home", tmp_path) == 0
    assert "0 requests" in capsys.readouterr().out
    assert novamesh("node", "why", "--json", "--home", tmp_path) == 0
    assert json.loads(capsys.readouterr().out)["considered"] == 0


def test_orders_are_talk_and_not_data(
    daemon: Daemon, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert novamesh("node", "pause", "--for", "2h", "--now", "--home", tmp_path) == 0
    assert novamesh("node", "resume", "--home", tmp_path) == 0
    assert novamesh("node", "finish", "--home", tmp_path) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [
        "the owner paused this node; go on:  novamesh node resume",
        "the node takes work: 3 of 4 slots are free",
        "the node ends 2 jobs and stops",
    ]
    assert daemon.asked == [
        ("pause", {"for_s": 7200, "now": True}),
        ("resume", {}),
        ("finish", {}),
    ]


def test_stop_waits_until_the_node_is_gone(
    daemon: Daemon, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert novamesh("node", "stop", "--home", tmp_path) == 0
    assert capsys.readouterr().err.splitlines()[-1] == "the node has stopped"


def test_what_the_daemon_refuses_is_an_error_and_a_hint(
    daemon: Daemon, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon.refusal = NovaMeshError(Code.CONFLICT, "the node is finishing", "wait")
    assert novamesh("node", "pause", "--home", tmp_path) == 1
    assert capsys.readouterr().err == "error: the node is finishing\nhint: wait\n"


@pytest.mark.parametrize("command", ["status", "why", "stop", "finish", "pause", "resume"])
def test_without_a_daemon_every_order_says_how_to_start_one(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert novamesh("node", command, "--home", tmp_path) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [
        "error: no node runs on this machine",
        "hint: start one:  novamesh node start",
    ]


def test_a_bad_span_of_time_is_a_usage_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert novamesh("node", "pause", "--for", "soon", "--home", tmp_path) == 2
    assert "2h" in capsys.readouterr().err


def test_start_without_a_pool_says_how_to_join(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("JOIN", "POOL_ADDRESS", "POOL_COORDINATOR", "POOL_NETWORK"):
        monkeypatch.delenv(f"NOVAMESH_{name}", raising=False)
    assert novamesh("node", "start", "--home", tmp_path) == 78
    assert "novamesh node start --join CODE" in capsys.readouterr().err
    assert novamesh("node", "start", "--slots", "0", "--home", tmp_path) == 2


def test_a_damaged_model_is_shown_as_such(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profile = save_tiny_profile(find_places(tmp_path).models / "tiny")
    weights = profile.path / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    (profile.path / "config.json").unlink()
    # What is not there is seen at once, what was changed when every byte is read.
    for command, damaged in (
        ("show", ["config.json"]),
        ("verify", ["config.json", "model.safetensors"]),
    ):
        assert novamesh("models", command, "tiny", "--home", tmp_path) == 1
        said = capsys.readouterr()
        shown = [line.split()[1] for line in said.out.splitlines() if line.startswith("damaged ")]
        assert shown == damaged
        assert said.err.startswith(f"error: damaged: {profile.path / 'config.json'}")
        assert novamesh("models", command, "tiny", "--json", "--home", tmp_path) == 1
        assert json.loads(capsys.readouterr().out)["damaged"] == damaged


def test_the_shelf(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profile = save_tiny_profile(find_places(tmp_path).models / "tiny")
    assert novamesh("models", "ls", "--home", tmp_path) == 0
    assert profile.digest_short in capsys.readouterr().out
    assert novamesh("models", "ls", "--json", "--home", tmp_path) == 0
    assert json.loads(capsys.readouterr().out)[-1]["digest"] == profile.digest_text
    assert novamesh("models", "show", "tiny", "--home", tmp_path) == 0
    assert profile.digest_text in capsys.readouterr().out
    assert novamesh("models", "show", "tiny", "--json", "--home", tmp_path) == 0
    fields = json.loads(capsys.readouterr().out)
    assert (fields["digest"], fields["damaged"]) == (profile.digest_text, [])
    assert novamesh("models", "show", "none", "--home", tmp_path) == 1
    assert "novamesh models ls" in capsys.readouterr().err


def test_a_pull_prints_name_and_digest_and_rm_takes_it_away(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    profile = save_tiny_profile(tmp_path / "made", "mine")
    assert novamesh("models", "pull", profile.path, "--home", home) == 0
    said = capsys.readouterr()
    assert said.out == f"mine  {profile.digest_text}\n"
    assert f"novamesh node start --model mine --home {home}\n" in said.err
    assert "copying file 1 of" in said.err
    assert "convert" not in said.err
    assert novamesh("models", "pull", profile.path, "--json", "--home", home) == 0
    assert json.loads(capsys.readouterr().out)["digest"] == profile.digest_text
    assert novamesh("models", "verify", "mine", "--home", home) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in shown] == ["ok"] * len(profile.files)

    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))  # no terminal: nobody there to agree
    assert novamesh("models", "rm", "mine", "--home", home) == 130
    assert f"novamesh models rm mine --yes --home {home}\n" in capsys.readouterr().err
    assert novamesh("models", "rm", "nosuch", "--home", home) == 1
    assert "there is no model 'nosuch'" in capsys.readouterr().err, "nobody is asked about nothing"
    assert novamesh("models", "rm", "mine", "--yes", "--home", home) == 0
    assert "removed mine" in capsys.readouterr().err
    assert not (find_places(home).models / "mine").exists()


def test_what_a_node_serves_is_said_and_stays(
    daemon: Daemon, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profile = save_tiny_profile(find_places(tmp_path).models / "tiny")
    model = {"name": "tiny", "digest": profile.digest_text, "decode_tokens_per_s": 1.0}
    daemon.status = STATUS | {"models": [model]}
    assert novamesh("models", "show", "tiny", "--home", tmp_path) == 0
    assert "used by     node 12D3KooWnode" in capsys.readouterr().out
    assert novamesh("models", "rm", "tiny", "--yes", "--home", tmp_path) == 1
    assert "serves tiny" in capsys.readouterr().err
    assert profile.path.exists()


def test_auto_says_what_it_takes_and_asks_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = Memory(10**9, "1.0 GB of a small card")
    monkeypatch.setattr(recommend, "measure_memory", lambda _: memory)
    assert novamesh("models", "pull", "auto", "--home", tmp_path) == 0
    said = capsys.readouterr()
    assert said.out.startswith("nova-pico  sha256:")
    assert "1.0 GB of a small card" in said.err


def test_a_pull_says_nothing_for_developers(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "novamesh", "models", "pull", "nosuch", "--home", tmp_path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == ["error", "hint"]


def test_a_pull_that_is_stopped_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Puller, "pull", stop)
    assert novamesh("models", "pull", "org/model") == 130
    said = capsys.readouterr().err
    assert said.endswith("hint: go on where it stopped:  novamesh models pull org/model\n")
    typed = [
        "models", "pull", "src/Big Model", "--name", "mine", "--revision", "v 1", "--force",
        "--keep-download", "--json", "--home", str(tmp_path / "a home"),
    ]  # fmt: skip
    assert novamesh(*typed) == 130
    hint = capsys.readouterr().err.split("where it stopped:")[1]
    assert shlex.split(hint) == ["novamesh", *typed]
