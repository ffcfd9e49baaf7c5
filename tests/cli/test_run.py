"""`novamesh run`: what stdout holds when an answer ends badly, and what is said of its speed."""

from __future__ import annotations

import asyncio
import io
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest

from novamesh.cli import main
from novamesh.cli.run import print_answer, speed_of
from novamesh.client import Run
from novamesh.completion import Piece
from novamesh.config import find_places, save_pool
from novamesh.receipts import verify_file
from novamesh_proto.errors import Code, NovaMeshError
from support.fake_pool import FakePool


class _Broken:
    """An answer that breaks off."""

    def __init__(self, error: BaseException, *texts: str) -> None:
        self._error = error
        self._texts = texts

    async def __aiter__(self) -> AsyncIterator[Piece]:
        for text in self._texts:
            yield Piece(text, ())
        raise self._error


@pytest.mark.parametrize(
    ("texts", "json", "expected"),
    [
        (("1 + 2 = ",), False, "1 + 2 = \n"),
        (("1 + 2 = ", ""), False, "1 + 2 = \n"),
        (("3\n",), False, "3\n"),
        ((), False, ""),
        (("1 + 2 = ",), True, ""),
    ],
)
@pytest.mark.parametrize(
    "error", [NovaMeshError(Code.EXPIRED, "too late"), asyncio.CancelledError()]
)
async def test_line_of_a_broken_answer_is_ended(
    texts: tuple[str, ...],
    json: bool,
    expected: str,
    error: BaseException,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(type(error)):
        await print_answer(cast(Run, _Broken(error, *texts)), json)
    assert capsys.readouterr().out == expected


def test_speed_or_why_there_is_none() -> None:
    assert speed_of(412.42, 28, 90_000) == ", then 412.4 tokens/s"
    assert speed_of(0.0, 16, 60_000) == ", all 16 after 0.060 s: too short to tell a speed"
    assert speed_of(None, 100, 499_999).endswith(" after 0.500 s: too short to tell a speed")
    assert speed_of(0.0, 100, 2_000_000) == (
        ", all 100 after 2.000 s: in one burst, which tells no speed"
    )


def test_receipt_goes_where_it_is_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOVAMESH_HOME", str(tmp_path))
    wanted = tmp_path / "answer.receipt"
    with FakePool() as pool:
        save_pool(find_places(tmp_path), pool.entry)
        assert main(["run", "nova-pico", "hi", "--receipt", str(wanted)]) == 0
    assert verify_file(wanted, pool.key.node_id).completion_tokens == 5


def test_stdin_that_is_no_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NOVAMESH_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9"), encoding="utf-8"))
    assert main(["run", "nova-pico"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: the prompt on stdin is not UTF-8 text\nhint: convert it first")
