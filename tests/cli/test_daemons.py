"""Daemons for a short while: ready or explained, and always gone afterwards."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from novamesh.cli import daemons as module
from novamesh.cli.daemons import DaemonError, Daemons, read_tail
from novamesh_proto.errors import MEANINGS, Code

READY = "import sys, time; print('ready now', flush=True); time.sleep(60)"
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + READY
BROKEN = "import sys; print('the reason', file=sys.stderr); sys.exit(3)"


@pytest.fixture(autouse=True)
def _python_in_place_of_novamesh(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setattr(module, "_command", lambda arguments: [sys.executable, "-c", *arguments])
    monkeypatch.setattr(module, "STOP_S", 0.5)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_daemon_is_ready_and_gone_afterwards(tmp_path: Path) -> None:
    async with Daemons(tmp_path) as daemons:
        daemon = await daemons.start("one", READY)
        assert daemon.ready == "ready now"
        assert _alive(daemon.process.pid)
    assert not _alive(daemon.process.pid)
    assert (tmp_path / "one" / "daemon.log").exists()


async def test_stop_and_kill(tmp_path: Path) -> None:
    async with Daemons(tmp_path) as daemons:
        polite, killed = await daemons.start("one", READY), await daemons.start("two", READY)
        await polite.stop()
        await killed.kill()
        assert not _alive(polite.process.pid)
        assert not _alive(killed.process.pid)


async def test_deaf_daemon_is_killed(tmp_path: Path) -> None:
    async with Daemons(tmp_path) as daemons:
        daemon = await daemons.start("one", DEAF)
    assert daemon.process.returncode == -9


async def test_broken_daemon_shows_the_end_of_its_log(tmp_path: Path) -> None:
    async with Daemons(tmp_path) as daemons:
        with pytest.raises(DaemonError, match="status 3") as caught:
            await daemons.start("one", BROKEN)
    assert caught.value.tail == "the reason"
    assert caught.value.meaning.exit == 3


@pytest.mark.parametrize("status", [None, 0, -9])
def test_what_did_not_end_by_itself_is_a_failure_of_ours(status: int | None) -> None:
    error = DaemonError("it was silent", "", status)
    assert error.meaning == MEANINGS[Code.INTERNAL]


async def test_silent_daemon_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "READY_S", 0.2)
    async with Daemons(tmp_path) as daemons:
        with pytest.raises(DaemonError, match="silent"):
            await daemons.start("one", "import time; time.sleep(60)")


async def test_silent_command_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COMMAND_S", 0.2)
    async with Daemons(tmp_path) as daemons:
        with pytest.raises(DaemonError) as caught:
            await daemons.command("one", "import time; time.sleep(60)")
    assert caught.value.tail == "it took too long"


async def test_cancellation_leaves_nothing(tmp_path: Path) -> None:
    processes: list[int] = []

    async def use() -> None:
        async with Daemons(tmp_path) as daemons:
            processes.append((await daemons.start("one", READY)).process.pid)
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1.5):
            await use()
    assert processes
    assert not _alive(processes[0])


async def test_command_prints_or_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOVAMESH_POOL_ADDRESS", "the user's own")
    show = "import os; print(os.environ['NOVAMESH_HOME'], os.environ.get('NOVAMESH_POOL_ADDRESS'))"
    async with Daemons(tmp_path) as daemons:
        assert await daemons.command("one", show) == f"{tmp_path / 'one'} None\n"
        with pytest.raises(DaemonError) as caught:
            await daemons.command("one", BROKEN)
    assert "the reason" in caught.value.tail
    assert caught.value.meaning.exit == 3


def test_tail_is_bounded(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("".join(f"line {n}\n" for n in range(100_000)))
    assert read_tail(log).splitlines()[-1] == "line 99999"
    assert len(read_tail(log).splitlines()) == module.TAIL_LINES
