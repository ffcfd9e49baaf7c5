"""`novamesh coordinator health --http`, against pages like a coordinator's."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Iterator

import pytest

from novamesh.cli import main
from novamesh_coordinator.health_page import read_health
from novamesh_coordinator.http import serve_pages
from novamesh_proto.errors import Code, NovaMeshError


@contextlib.contextmanager
def page(status: int, body: bytes) -> Iterator[str]:
    """A /healthz that says so, served beside the test; its address."""
    ready, ports, over = threading.Event(), [], []

    async def serve() -> None:
        pages = {"/healthz": lambda: (status, "text/plain", body)}
        async with serve_pages("127.0.0.1", 0, pages) as port:
            end = asyncio.Event()
            ports.append(port)
            over.append((asyncio.get_running_loop(), end))
            ready.set()
            await end.wait()

    server = threading.Thread(target=lambda: asyncio.run(serve()))
    server.start()
    assert ready.wait(10)
    try:
        yield f"127.0.0.1:{ports[0]}"
    finally:
        loop, end = over[0]
        loop.call_soon_threadsafe(end.set)
        server.join()


@pytest.mark.parametrize(
    ("body", "state", "serving"),
    [(b"ok\n", "serving", True), (b"standby\n", "standing by", False)],
)
def test_one_that_serves_and_one_that_stands_by_are_well(
    body: bytes, state: str, serving: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    with page(200, body) as address:
        assert read_health(address) == state
        assert main(["coordinator", "health", "--http", address]) == 0
        assert capsys.readouterr().out == f"{state}\n"
        assert main(["coordinator", "health", "--http", address, "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == {"serving": serving}


@pytest.mark.parametrize(
    ("status", "body"),
    [(503, b"the disk takes no writes\n"), (200, b"<html>"), (200, b"\xff" * 4096), (503, b"ok\n")],
)
def test_any_other_answer_is_none(status: int, body: bytes) -> None:
    with page(status, body) as address, pytest.raises(NovaMeshError) as refused:
        read_health(address)
    assert refused.value.code is Code.UNAVAILABLE


def test_nobody_there_is_told_with_a_way_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["coordinator", "health", "--http", "127.0.0.1:1"]) == 69
    assert "serve --http" in capsys.readouterr().err
    assert main(["coordinator", "health", "--http", "here"]) == 78
