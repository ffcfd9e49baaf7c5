"""The coordinator never holds a prompt or an answer: not in memory, database, WAL or log.

What is not found proves something only if the same search finds what must be there: every scan has
its control, a string that the scanned process or folder certainly holds.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import string
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from novamesh_proto.identity import parse_node_id
from support.processes import RealPool

pytestmark = pytest.mark.timeout(180)
PIECE_BYTES = 4 * 1024 * 1024
SCANNED_BYTES_MIN = 16 * 1024 * 1024  # what a Python process with gRPC has at least
PROBLEM = (
    b" has 134 apples. She buys 52 more. Then she gives away 38. Later she finds 109 more."
    b" How many apples does she have now?"
)

# Asks what its standard input says, tells the answer and then holds both until its input ends.
ASKER = """
import asyncio, json, sys
from novamesh import Client

async def ask(prompt):
    async with Client() as client:
        return await client.complete("nova-pico", prompt)

prompt = sys.stdin.readline().rstrip()
answer = asyncio.run(ask(prompt))
print(json.dumps({"text": answer.text, "job": answer.job.hex()}), flush=True)
sys.stdin.read()
"""


def test_a_marker_is_found_in_the_client_and_nowhere_at_the_coordinator(pool: RealPool) -> None:
    # A name that nobody has: the built-in model works on, and its answer is long and sure.
    marker = "".join(secrets.choice(string.ascii_lowercase) for _ in range(24)).encode()
    client_id = json.loads(pool.cli("key", "show", "--json").stdout)["peer_id"]
    member = parse_node_id(client_id)
    with _asking(pool, marker + PROBLEM) as (asker, answer):
        text, job = str(answer["text"]).strip().encode(), bytes.fromhex(str(answer["job"]))
        assert text.endswith(b"148 + 109 = 257. Answer: 257")
        found, _ = _scan_memory(asker, [marker, text])
        assert found == {marker, text}
    secret = [
        text,
        marker,
        marker.decode().encode("utf-16-le"),
        marker.decode().encode("utf-32-le"),
    ]
    coordinator = pool.coordinator.process.pid
    found, scanned = _scan_memory(coordinator, [*secret, member, job])
    assert found == {member, job}
    assert scanned >= SCANNED_BYTES_MIN
    assert _scan_files(pool.home("pool"), [*secret, member, job]) == {member, job}
    for daemon in pool.daemons.values():
        log = _scan_files(daemon.home, [*secret, b"attached", b"log read"])
        assert log & {b"attached", b"log read"}
        assert not log & set(secret)


def test_a_process_that_cannot_be_read_is_no_process_without_the_marker() -> None:
    with pytest.raises(ProcessLookupError):
        _scan_memory(2**22 + 1, [b"anything"])


@contextmanager
def _asking(pool: RealPool, prompt: bytes) -> Iterator[tuple[int, dict[str, object]]]:
    """A client process that has its answer and still lives: its id, and what it printed."""
    with subprocess.Popen(
        [sys.executable, "-c", ASKER],
        env=pool.environment("client"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as asker:
        try:
            assert asker.stdin is not None
            assert asker.stdout is not None
            asker.stdin.write(prompt + b"\n")
            asker.stdin.flush()
            yield asker.pid, json.loads(asker.stdout.readline())
        finally:
            asker.kill()


def _scan_memory(pid: int, needles: list[bytes]) -> tuple[set[bytes], int]:
    """Needles in the writable memory of a process, and how many bytes were looked at.

    The process stands still meanwhile, so that memory that cannot be read is an error.
    """
    overlap = max(map(len, needles)) - 1
    found: set[bytes] = set()
    scanned = 0
    os.kill(pid, signal.SIGSTOP)
    try:
        with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
            for start, end in _writable(pid):
                tail = b""
                for offset in range(start, end, PIECE_BYTES):
                    piece = os.pread(memory.fileno(), min(PIECE_BYTES, end - offset), offset)
                    assert len(piece) == min(PIECE_BYTES, end - offset)
                    scanned += len(piece)
                    text = tail + piece
                    found |= {needle for needle in needles if needle in text}
                    tail = piece[-overlap:]
    finally:
        os.kill(pid, signal.SIGCONT)
    return found, scanned


def _writable(pid: int) -> Iterator[tuple[int, int]]:
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        span, permissions, *_ = line.split()
        if permissions.startswith("rw"):
            start, end = span.split("-")
            yield int(start, 16), int(end, 16)


def _scan_files(folder: Path, needles: list[bytes]) -> set[bytes]:
    """Needles in any file below a folder."""
    contents = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    return {needle for needle in needles if any(needle in content for content in contents)}
