"""How commands speak: harmless on terminals, whole in pipes, plain without colour."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from novamesh.cli import output


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@given(st.text())
def test_cleaned_text_has_nothing_a_terminal_would_obey(text: str) -> None:
    cleaned = output.clean(text)
    assert len(cleaned) == len(text)
    assert all(c.isprintable() or c in "\n\t\u200c\u200d" or c.isspace() for c in cleaned)
    assert "\x1b" not in cleaned
    assert output.clean(cleaned) == cleaned


def test_ordinary_text_stays() -> None:
    text = "Zoë zählt 🦊\tund\n光 👩\u200d🔬"
    assert output.clean(text) == text


def test_answer_is_cleaned_for_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, terminal = io.StringIO(), Terminal()
    monkeypatch.setattr("sys.stdout", pipe)
    output.write("\x1b[2Jhi")
    monkeypatch.setattr("sys.stdout", terminal)
    output.write("\x1b[2Jhi")
    assert pipe.getvalue() == "\x1b[2Jhi"
    assert terminal.getvalue() == "�[2Jhi"


@pytest.mark.parametrize("no_colour", [False, True])
def test_colour_on_a_terminal_unless_unwanted(
    monkeypatch: pytest.MonkeyPatch, no_colour: bool
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_colour:
        monkeypatch.setenv("NO_COLOR", "1")
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    output.complain("it broke", "mend it")
    assert ("\x1b[1;31m" in terminal.getvalue()) is not no_colour
    assert "error:" in terminal.getvalue()
    assert "it broke" in terminal.getvalue()


def test_refusal_without_a_hint_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    output.complain("it [broke]")
    output.complain("long " * 60, "x")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[0] == "error: it [broke]"
    assert len(captured.err.splitlines()) == 3


def test_table_lines_up_and_numbers_stand_right(capsys: pytest.CaptureFixture[str]) -> None:
    output.write_table(("NAME", "N"), [("a", 7), ("long name", 123)])
    assert capsys.readouterr().out == "NAME         N\na            7\nlong name  123\n"


def test_wide_table_is_cut_for_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    output.write_table(("A", "B"), [("x" * 300, "y")])
    assert "x" * 300 + "  y" in capsys.readouterr().out


def test_json_is_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    output.write_json({"name": "Zoë\x1b"})
    assert json.loads(capsys.readouterr().out) == {"name": "Zoë\x1b"}


def test_words() -> None:
    assert output.plural(1, "token") == "1 token"
    assert output.plural(2, "token") == "2 tokens"
    assert output.moment(1_800_000_000_000) == "2027-01-15 08:00:00"
