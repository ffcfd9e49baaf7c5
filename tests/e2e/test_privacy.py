"""The coordinator never holds a prompt or an answer: not in memory, database, WAL or log."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from novamesh import Client
from support.processes import RealPool

pytestmark = pytest.mark.timeout(180)
PIECE_BYTES = 4 * 1024 * 1024


async def test_marker_is_found_in_the_client_and_nowhere_at_the_coordinator(
    pool: RealPool,
) -> None:
    marker = f"marker{secrets.token_hex(12)}"
    async with Client(home=pool.home("client")) as client:
        answer = await client.complete("nova-pico", f"What is 31 plus 14? {marker}")
        needles = [marker.encode(), marker.encode("utf-16-le")]
        if len(answer.text.strip()) >= 12:
            needles.append(answer.text.strip().encode())
            assert _found_in_memory(os.getpid(), needles), "the scanner finds it where it must be"
        assert not _found_in_memory(pool.coordinator.process.pid, needles)
        assert not list(_found_in_files(pool.home("pool"), needles))
        for daemon in pool.daemons.values():
            assert not list(_found_in_files(daemon.home, needles))


def _found_in_memory(pid: int, needles: list[bytes]) -> bool:
    """Whether any needle lies in the writable memory of a process."""
    pattern = re.compile(b"|".join(map(re.escape, needles)))
    overlap = max(map(len, needles)) - 1
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for start, end in _writable(pid):
            tail = b""
            for offset in range(start, end, PIECE_BYTES):
                try:
                    memory.seek(offset)
                    piece = memory.read(min(PIECE_BYTES, end - offset))
                except (OSError, ValueError):
                    break  # a guard page, or a region that is gone by now
                if pattern.search(tail + piece):
                    return True
                tail = piece[-overlap:]
    return False


def _writable(pid: int) -> Iterator[tuple[int, int]]:
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        span, permissions, *_ = line.split()
        if permissions.startswith("rw"):
            start, end = span.split("-")
            yield int(start, 16), int(end, 16)


def _found_in_files(folder: Path, needles: list[bytes]) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if path.is_file() and any(needle in path.read_bytes() for needle in needles):
            yield path
