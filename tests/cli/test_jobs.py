"""`novamesh jobs`: the answer of a client that was cut off, and where a job is."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from novamesh import Client
from novamesh.cli import main
from novamesh.config import find_places, save_pool
from support.fake_answer import Death, Script
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


def test_answer_whose_node_was_lost_too_goes_on_with_its_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NOVAMESH_HOME", str(tmp_path))
    with FakePool(Script(hang_after=2, deaths=[Death(3)])) as pool:
        save_pool(find_places(tmp_path), pool.entry)
        with monkeypatch.context() as patch:
            patch.setattr("novamesh.session.JobSession._stop", _vanish)
            asyncio.run(_leave_behind(tmp_path, pool))
        (job,) = pool.jobs
        assert main(["jobs", "resume"]) == 75
        captured = capsys.readouterr()
        assert captured.out == "Two plus three \n"
        assert f"novamesh jobs resume {job.hex()[:12]} 'PROMPT'" in captured.err
        assert main(["jobs", "resume", job.hex()[:12], "hello"]) == 2
        assert "asked something else" in capsys.readouterr().err
        assert main(["jobs", "resume", job.hex()[:12], "hi"]) == 0
        assert capsys.readouterr().out == "Two plus three is five.\n"
        assert main(["jobs", "show", job.hex(), "--json"]) == 0
        last = list(pool.jobs)[-1]
        assert f"{last.hex()}.receipt" in capsys.readouterr().out
        del pool.jobs[job]
        monkeypatch.chdir(tmp_path)
        (tmp_path / job.hex()[:12]).write_text("no receipt")
        for text in (job.hex(), job.hex()[:12]):
            assert main(["jobs", "show", text]) == 1
            path = find_places(tmp_path).receipts / f"{last.hex()}.receipt"
            assert f"novamesh receipt show {path}" in capsys.readouterr().err
