"""The coordinator runs under all that its unit forbids it, in a real systemd."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.ports import free_port
from support.user_manager import lacking, user_manager

pytestmark = [pytest.mark.timeout(300), pytest.mark.skipif(bool(lacking()), reason=lacking())]
ROOT = Path(__file__).parents[2]
UNIT = ROOT / "deploy" / "systemd" / "novamesh-coordinator.service"
RUN = "/opt/novamesh/bin/novamesh coordinator serve --listen 0.0.0.0:7700"


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where PrivateTmp hides nothing."""
    made = Path(tempfile.mkdtemp(prefix="nm-", dir="/var/lib"))
    yield made
    shutil.rmtree(made)


def fitted(text: str, replaced: dict[str, str]) -> str:
    """The unit with other lines; each is there once."""
    for old, new in replaced.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def test_it_serves_and_stops_in_order(folder: Path) -> None:
    home, run = folder / "home", f"{sys.executable} -m novamesh coordinator"
    serve = f"{run} serve --listen 127.0.0.1:{free_port()} --http 127.0.0.1:0"
    text = fitted(
        UNIT.read_text(),
        {
            # A user's manager has no dynamic users, and this Python may lie in somebody's home.
            "DynamicUser=yes\n": "",
            "StateDirectory=novamesh\n": f"ReadWritePaths={folder}\n",
            "StateDirectoryMode=0700\n": "",
            "ProtectHome=yes\n": "",
            # Nor does PrivateTmp hide a checkout that lies there.
            "PrivateTmp=yes\n": f"PrivateTmp=yes\nBindReadOnlyPaths={ROOT}\n",
            "=/var/lib/novamesh\n": f"={home}\n",
            f"ExecStart={RUN}\n": f"ExecStart={serve}\n",
        },
    )
    unit = folder / "config" / "systemd" / "user" / UNIT.name
    unit.parent.mkdir(parents=True)
    unit.write_text(text)
    with user_manager(folder) as manager:
        manager.until(manager.serves)
        made = manager.run(*run.split(), "init", "--name", "unit", "--home", home)
        assert made.returncode == 0, made.stderr
        started = manager.run("systemctl", "--user", "start", UNIT.name)
        assert started.returncode == 0, started.stderr
        asked = (*run.split(), "health", "--home", home)
        manager.until(lambda: manager.run(*asked).returncode == 0)
        process = manager.properties(UNIT.name, "MainPID")["MainPID"]
        seen = manager.run("cat", f"/proc/{process}/status").stdout.split("\n")
        for line in ("NoNewPrivs:\t1", "Seccomp:\t2", f"CapBnd:\t{0:016x}"):
            assert line in seen
        stopped = manager.run("systemctl", "--user", "stop", UNIT.name)
        assert stopped.returncode == 0, stopped.stderr
        ended = {"Result": "success", "ExecMainStatus": "0", "NRestarts": "0"}
        assert manager.properties(UNIT.name, *ended) == ended
