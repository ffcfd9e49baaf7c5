"""`novamesh node install` under a real systemd: up, failing, killed, frozen, finished, gone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from novamesh.config import Pool, find_places, save_pool
from novamesh_node.user_unit import NAME
from novamesh_proto.identity import format_node_id
from support.parties import COORDINATOR
from support.user_manager import UserManager, lacking, user_manager

pytestmark = [pytest.mark.timeout(400), pytest.mark.skipif(bool(lacking()), reason=lacking())]
AWAY = "127.0.0.1:1"  # a pool that nobody answers for: a node waits for it and is no failure
QUICK = "[Service]\nRestartSec=1\nWatchdogSec=5\n"


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: sockets lie in it."""
    made = Path(tempfile.mkdtemp(prefix="nm-unit-"))
    yield made
    shutil.rmtree(made)


@pytest.fixture
def manager(folder: Path) -> Iterator[UserManager]:
    with user_manager(folder) as running:
        running.until(running.serves)
        yield running


def novamesh(manager: UserManager, *words: str | Path) -> subprocess.CompletedProcess[str]:
    return manager.run(sys.executable, "-m", "novamesh", *words)


def state(manager: UserManager) -> dict[str, str]:
    names = ("ActiveState", "Result", "ExecMainStatus", "NRestarts", "StatusText", "MainPID")
    return manager.properties(NAME, *names)


def status(manager: UserManager, home: Path) -> dict[str, Any]:
    """What the node says of itself; nothing while it does not."""
    said = novamesh(manager, "node", "status", "--json", "--home", home)
    return json.loads(said.stdout) if said.returncode == 0 else {}


def hurt(manager: UserManager, signal: str) -> None:
    """A signal to the node, and it is up again as another process."""
    before = state(manager)["MainPID"]
    assert manager.run("kill", signal, before).returncode == 0
    manager.until(lambda: state(manager)["MainPID"] not in ("0", before))
    manager.until(lambda: state(manager)["ActiveState"] == "active")


def test_the_life_of_a_service(manager: UserManager, folder: Path) -> None:
    home = folder / "home"
    pool = Pool(AWAY, format_node_id(COORDINATOR.node_id), "testnet", "")
    save_pool(find_places(home), pool)
    config = find_places(home).config_file
    right = config.read_text()
    config.write_text(f"{right}\n[node]\nslot = 2\n")
    drop_in = folder / "config" / "systemd" / "user" / f"{NAME}.d"
    drop_in.mkdir(parents=True)
    (drop_in / "quick.conf").write_text(QUICK)

    refused = novamesh(manager, "node", "install", "--home", home)
    assert refused.returncode == 69, refused.stderr
    failed = state(manager)
    assert (failed["ActiveState"], failed["ExecMainStatus"]) == ("failed", "78"), failed
    assert failed["NRestarts"] == "0"

    config.write_text(right)
    done = novamesh(manager, "node", "install", "--home", home)
    assert done.returncode == 0, done.stderr
    up = state(manager)
    assert (up["ActiveState"], up["StatusText"]) == ("active", "idle")
    assert status(manager, home)["phase"] == "idle"

    hurt(manager, "-KILL")
    hurt(manager, "-STOP")
    assert state(manager)["NRestarts"] == "2"

    assert novamesh(manager, "node", "finish", "--home", home).returncode == 0
    manager.until(lambda: state(manager)["ActiveState"] == "inactive")
    assert (state(manager)["Result"], state(manager)["NRestarts"]) == ("success", "2")
    assert novamesh(manager, "node", "uninstall").returncode == 0
    assert manager.properties(NAME, "LoadState") == {"LoadState": "not-found"}
