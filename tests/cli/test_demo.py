"""`novamesh demo`: a whole pool in real processes, and nothing of it afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from novamesh.receipts import verify_file
from novamesh_proto.errors import MEANINGS, Code, NovaMeshError

WAIT_S = 110


def _start(tmp_path: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "novamesh", "demo", *arguments],
        env={"PATH": os.environ["PATH"], "TMPDIR": str(tmp_path), "HOME": str(tmp_path / "home")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A suite that runs in the background ignores SIGINT, and its children would too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def _processes(folder: Path) -> list[str]:
    """Command lines of all processes that live in a folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if str(folder).encode() in (entry / "environ").read_bytes():
                found.append((entry / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


def _wait_for_line(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if word in line:
            return
    raise AssertionError(process.communicate()[1])


def test_whole_play(tmp_path: Path) -> None:
    kept = tmp_path / "kept" / "demo.receipt"
    process = _start(tmp_path, "--keep-receipt", str(kept))
    out, err = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0, err
    for words in (
        "148 + 109 = 257. Answer: 257",  # the README shows it
        " ok: descriptor, terms, assignment",
        "killed (SIGKILL)",
        "the node that is left",
        "offline",
    ):
        assert words in out
    assert verify_file(kept).completion_tokens > 0
    data = kept.read_bytes()
    kept.write_bytes(data.replace(b"terms ", b"terms A", 1))
    with pytest.raises(NovaMeshError, match="terms"):
        verify_file(kept)
    assert _processes(tmp_path) == []
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_play_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    process = _start(tmp_path)
    _wait_for_line(process, "coordinator")
    process.send_signal(number)
    process.communicate(timeout=WAIT_S)
    assert process.returncode == 130
    assert _processes(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_interrupting_twice_leaves_nothing_either(tmp_path: Path) -> None:
    process = _start(tmp_path)
    _wait_for_line(process, "coordinator")
    for _ in range(5):
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    _, err = process.communicate(timeout=WAIT_S)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert _processes(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_model_that_is_not_there_starts_nothing(tmp_path: Path) -> None:
    process = _start(tmp_path, "--model", "nosuch")
    out, err = process.communicate(timeout=WAIT_S)
    assert (process.returncode, out) == (2, "")
    assert err.startswith("error: there is no model nosuch")
    assert "hint: name a folder with config.json, or a built-in model" in err


def test_play_that_fails_shows_the_log_of_what_failed(tmp_path: Path) -> None:
    broken = tmp_path / "broken-model"
    broken.mkdir()
    (broken / "config.json").write_text("{}")
    process = _start(tmp_path, "--model", str(broken))
    _, err = process.communicate(timeout=WAIT_S)
    assert process.returncode == MEANINGS[Code.CORRUPT].exit
    assert "error: node-" in err
    assert "broken-model" in err
    assert _processes(tmp_path) == []
