"""The programs in README.md and docs/sdk.md run as they stand, against a pool in memory."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest

import novamesh
from novamesh.asked import Asked
from novamesh.config import find_places, save_pool
from novamesh_proto.errors import Code
from support.fake_pool import FakePool

ROOT = Path(__file__).parents[2]
OPENED = """
import asyncio
from novamesh import *

async def main():
    async with Client() as client:
{}
asyncio.run(main())
"""


def _blocks() -> list[tuple[str, str]]:
    found = []
    for name in ("README.md", "docs/sdk.md"):
        text = (ROOT / name).read_text()
        for number, block in enumerate(re.findall(r"```python\n(.*?)```", text, re.DOTALL)):
            found.append((f"{name}-{number}", block))
    return found


@pytest.mark.parametrize("block", [pytest.param(text, id=name) for name, text in _blocks()])
def test_program_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOVAMESH_HOME", str(tmp_path))
    # A block without its own frame stands inside an open client, as the page says.
    whole = "asyncio.run(" in block
    program = block if whole else OPENED.format(textwrap.indent(block, " " * 8))
    with FakePool() as pool:
        save_pool(find_places(tmp_path), pool.entry)
        exec(compile(program, "block", "exec"), {"__name__": "__main__"})


def test_page_names_every_option_and_only_codes_that_are() -> None:
    text = (ROOT / "docs/sdk.md").read_text()
    for option in Asked.__annotations__:
        assert f"`{option}`" in text, option
    rows = re.findall(r"^\| (`[A-Z_`, ]+`) \|", text, re.MULTILINE)
    named = {code for row in rows for code in re.findall(r"[A-Z_]+", row)}
    assert len(named) > 15
    assert named <= {code.name for code in Code}
    used = set(re.findall(r"`(Completion|Run|Piece|Config|Asked|PeerError|NovaMeshError)`", text))
    assert used <= set(novamesh.__all__)
