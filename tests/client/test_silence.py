"""The SDK speaks through errors and the log; what it prints, nobody asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from novamesh.config import find_places, save_pool
from support.fake_pool import FakePool

PROGRAM = """
import asyncio, sys
from novamesh import Client, NovaMeshError

async def main() -> None:
    async with Client(home=sys.argv[1]) as client:
        await client.complete("nova-pico", "2+3?")

try:
    asyncio.run(main())
except NovaMeshError as error:
    sys.exit(0 if error.code == "unavailable" else 1)
sys.exit(2)
"""
LISTENING = "import logging; logging.basicConfig(level=logging.INFO)\n"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder whose pool cannot be reached."""
    with FakePool() as pool:
        save_pool(find_places(tmp_path), pool.entry)
    return tmp_path


def _run(program: str, home: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program, str(home)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_call_to_a_pool_out_of_reach_prints_nothing(home: Path) -> None:
    done = _run(PROGRAM, home)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


def test_whoever_listens_hears_of_each_try(home: Path) -> None:
    done = _run(LISTENING + PROGRAM, home)
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if "novamesh.retries" in line]
    assert len(lines) == 2
    assert all("Connection refused; trying again in" in line for line in lines)
