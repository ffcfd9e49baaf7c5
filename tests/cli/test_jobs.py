"""`novamesh jobs resume`: the answer of a client that was cut off."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from novamesh import Client
from novamesh.cli import main
from novamesh.config import find_places, save_pool
from support.fake_answer import Script
from support.fake_pool import FakePool


async def _vanish(_: object) -> None:
    """A process that dies cancels nothing."""


async def _leave_behind(home: Path, pool: FakePool) -> None:
    async with Client(home=home) as client:
        async for _ in client.run("nova-pico", "hi"):
            break
    pool.script.hang_after = None
    for job in pool.jobs.values():
        job.cancelled.set()


def test_answer_left_behind_is_read_from_its_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NOVAMESH_HOME", str(tmp_path))
    with FakePool(Script(hang_after=2)) as pool:
        save_pool(find_places(tmp_path), pool.entry)
        with monkeypatch.context() as patch:
            patch.setattr("novamesh.session.JobSession._stop", _vanish)
            asyncio.run(_leave_behind(tmp_path, pool))
        (job,) = pool.jobs
        assert main(["jobs", "resume", job.hex()[:8]]) == 0
        captured = capsys.readouterr()
        assert captured.out == "Two plus three is five.\n"
        assert f"{job.hex()}.receipt" in captured.err
        assert main(["jobs", "resume"]) == 1
        assert main(["receipt", "verify", job.hex()[:8]]) == 0
