"""How a pull shows how far it is, on a terminal and elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from novamesh_engine.quant.convert import Step
from novamesh_node import meters
from novamesh_node.meters import Bars, Lines, meter

NAME = "model-00001-of-00002.safetensors"


def play(audience: Lines | Bars) -> None:
    """A small pull."""
    with audience:
        audience.receive("config.json", 10, 10)
        audience.note("org/model: 2.0 GB to \x1b[31mdownload")
        audience.expect(2_000_000_000, 500_000_000)
        for position in (1_000_000_000, 1_500_000_000, 2_000_000_000):
            audience.receive(NAME, position, 2_000_000_000)
        audience.convert(Step(1, 2, 0, 500_000_000))
        audience.convert(Step(1, 2, 100_000_000, 500_000_000))
        audience.convert(Step(2, 2, 300_000_000, 500_000_000))
        audience.convert(Step(2, 2, 500_000_000, 500_000_000))


def test_lines_are_one_for_a_file_and_one_for_a_shard() -> None:
    said: list[str] = []
    now = iter(range(100))
    play(Lines(said.append, lambda: next(now)))
    assert said == [
        "org/model: 2.0 GB to �[31mdownload",
        f"downloaded {NAME}  2.0 GB, 500.0 MB/s",
        "converting shard 1 of 2",
        "converting shard 2 of 2",
        "converted  500 MB",
    ]


def copy(audience: Lines | Bars) -> None:
    """A small copy of a profile, of which one file is empty."""
    with audience:
        audience.expect(0, 500_000)
        for number, written in ((1, 0), (2, 1000), (3, 1000)):
            audience.copy(Step(number, 3, written, 500_000))
        audience.copy(Step(3, 3, 500_000, 500_000))


def test_a_copy_is_not_called_a_conversion() -> None:
    said: list[str] = []
    copy(Lines(said.append))
    assert said == [
        "copying file 1 of 3",
        "copying file 2 of 3",
        "copying file 3 of 3",
        "copied  500 kB",
    ]
    screen = io.StringIO()
    copy(Bars(Console(file=screen, force_terminal=True, width=120)))
    assert "copy file 3 of 3" in screen.getvalue()
    assert "convert" not in screen.getvalue()


def test_bars_show_both_works() -> None:
    screen = io.StringIO()
    play(Bars(Console(file=screen, force_terminal=True, width=120)))
    shown = screen.getvalue()
    assert "download model-00001-of-00002.safetensors" in shown
    assert "convert shard 2 of 2" in shown
    assert "500.0/500.0 MB" in shown
    assert "\x1b[31mdownload" not in shown


def test_what_fits_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(meters.sys, "stderr", io.StringIO())
    assert isinstance(meter(print), Lines)
    monkeypatch.setattr(meters.sys, "stderr", Terminal())
    assert isinstance(meter(print), Bars)
