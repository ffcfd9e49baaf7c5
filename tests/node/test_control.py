"""The control socket: private, bounded, and honest about errors."""

from __future__ import annotations

import asyncio
import json
import socket
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from novamesh_node import control
from novamesh_proto.errors import Code, NovaMeshError


async def handle(command: str, arguments: Mapping[str, Any]) -> control.Reply:
    if command == "explode":
        raise ZeroDivisionError
    if command == "refuse":
        raise NovaMeshError(Code.CONFLICT, "not now", "later")
    return {"command": command, **arguments}


async def raw(path: Path, line: bytes) -> Any:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(line)
    writer.write_eof()
    answer = await asyncio.wait_for(reader.readline(), 5)
    writer.close()
    return json.loads(answer) if answer else None


async def test_a_request_gets_its_reply(tmp_path: Path) -> None:
    path = tmp_path / "run" / "node.sock"
    async with control.listen(path, handle):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        reply = await control.ask(path, "pause", {"for_s": 5})
        assert reply == {"command": "pause", "for_s": 5}
    assert not path.exists()


async def test_an_error_travels_whole(tmp_path: Path) -> None:
    path = tmp_path / "node.sock"
    async with control.listen(path, handle):
        with pytest.raises(NovaMeshError) as caught:
            await control.ask(path, "refuse")
    error = caught.value
    assert (error.code, error.message, error.hint) == (Code.CONFLICT, "not now", "later")


async def test_a_bug_in_one_order_ends_no_other(tmp_path: Path) -> None:
    path = tmp_path / "node.sock"
    async with control.listen(path, handle):
        with pytest.raises(NovaMeshError) as caught:
            await control.ask(path, "explode")
        assert caught.value.code is Code.INTERNAL
        assert (await control.ask(path, "status"))["command"] == "status"


async def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(NovaMeshError) as caught:
        await control.ask(tmp_path / "node.sock", "status")
    assert caught.value.code is Code.NOT_FOUND
    assert "novamesh node start" in caught.value.hint


async def test_what_a_killed_daemon_left_behind_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "node.sock"
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()
    with pytest.raises(NovaMeshError):
        await control.ask(path, "status")
    async with control.listen(path, handle):
        assert (await control.ask(path, "status"))["command"] == "status"


async def test_a_path_longer_than_a_socket_address(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 90) / ("y" * 90) / "node.sock"
    async with control.listen(path, handle):
        assert (await control.ask(path, "status"))["command"] == "status"


async def test_a_folder_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NovaMeshError) as caught:
        async with control.listen(tmp_path / "file" / "node.sock", handle):
            pass
    assert caught.value.code is Code.STORAGE


@pytest.mark.parametrize(
    "line", [b"x\n", b"[]\n", b"{}\n", b'{"command": 1}\n', b"[" * 5000 + b"\n"]
)
async def test_what_is_no_request_is_refused(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "node.sock"
    async with control.listen(path, handle):
        assert (await raw(path, line))["error"]["code"] == Code.BAD_REQUEST


async def test_a_line_without_end_is_given_up(tmp_path: Path) -> None:
    path = tmp_path / "node.sock"
    async with control.listen(path, handle):
        assert await raw(path, b"x" * (2 * control.LINE_BYTES_MAX)) is None
        assert (await control.ask(path, "status"))["command"] == "status"


async def test_connections_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "node.sock"
    async with control.listen(path, handle):
        held = [await asyncio.open_unix_connection(path) for _ in range(control.CONNECTIONS_MAX)]
        with pytest.raises(NovaMeshError):
            await control.ask(path, "status")
        for _, writer in held:
            writer.close()
            await writer.wait_closed()


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(st.text(max_size=8), st.integers() | st.text(max_size=20), max_size=4))
def test_arguments_survive(
    tmp_path_factory: pytest.TempPathFactory, arguments: dict[str, Any]
) -> None:
    arguments.pop("command", None)
    arguments.pop("error", None)
    path = tmp_path_factory.mktemp("control") / "node.sock"

    async def cross() -> control.Reply:
        async with control.listen(path, handle):
            return await control.ask(path, "echo", arguments)

    assert asyncio.run(cross()) == {"command": "echo", **arguments}
