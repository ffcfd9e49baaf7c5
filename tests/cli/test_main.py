"""The process: exit statuses, interrupts, pipes that close, how fast help comes."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from novamesh import cli
from novamesh.config import find_places, save_pool
from novamesh_proto.errors import MEANINGS, Code, NovaMeshError
from support.fake_pool import FakePool


def _raise(error: BaseException) -> object:
    def command(*_: object, **__: object) -> None:
        raise error

    return command


@pytest.mark.parametrize("code", list(Code))
def test_exit_status_is_the_one_of_the_table(
    code: Code, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "app", _raise(NovaMeshError(code, "it broke", "mend it")))
    assert cli.main([]) == MEANINGS[code].exit
    assert capsys.readouterr().err == "error: it broke\nhint: mend it\n"


def test_interrupt_is_quiet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "app", _raise(KeyboardInterrupt()))
    assert cli.main([]) == 130
    assert capsys.readouterr() == ("", "")


def test_missing_library_of_ours_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "app", _raise(ModuleNotFoundError("gone", name="novamesh_node.x")))
    with pytest.raises(ModuleNotFoundError):
        cli.main(["node"])
    monkeypatch.setattr(cli, "app", _raise(ModuleNotFoundError("gone", name="rich")))
    with pytest.raises(ModuleNotFoundError):
        cli.main(["run"])


def test_missing_library_of_a_part_names_its_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "app", _raise(ModuleNotFoundError("gone", name="sqlalchemy")))
    assert cli.main(["coordinator", "serve"]) == MEANINGS[Code.UNSUPPORTED].exit
    assert "pip install 'novamesh[coordinator]'" in capsys.readouterr().err


def test_command_that_returns_a_number_exits_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "app", lambda *_, **__: 3)
    assert cli.main([]) == 3


def _novamesh(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "novamesh", *arguments],
        env={"PATH": os.environ["PATH"], "NOVAMESH_HOME": str(home), "COLUMNS": "80"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_module_is_the_command(tmp_path: Path) -> None:
    done = _novamesh("key", "new", home=tmp_path)
    assert done.returncode == 0
    assert done.stdout.startswith("12D3Koo")
    assert _novamesh("key", "new", home=tmp_path).returncode == 1
    assert _novamesh("bogus", home=tmp_path).returncode == 2


def test_closed_pipe_is_no_traceback(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "novamesh", "--help"],
        env={"PATH": os.environ["PATH"], "NOVAMESH_HOME": str(tmp_path)},
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writer)
    assert done.stderr == ""
    assert done.returncode != 0


@pytest.fixture(scope="module")
def member(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The home of a pool's member."""
    home = tmp_path_factory.mktemp("member")
    with FakePool() as pool:
        save_pool(find_places(home), pool.entry)
        yield home


@pytest.mark.parametrize("command", ["--help", "pool ls", "jobs ls --json", "run nova-pico hello"])
def test_full_disk_below_stdout_is_an_error_like_others(command: str, member: Path) -> None:
    done = _write_to("/dev/full", command, member)
    assert done.stderr.splitlines()[-2:] == [
        "error: cannot write the output: No space left on device",
        "hint: write it elsewhere",
    ]
    assert "Traceback" not in done.stderr
    assert done.returncode == MEANINGS[Code.STORAGE].exit


def test_refusal_after_output_that_cannot_be_written_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(*_: object, **__: object) -> None:
        sys.stdout.write("half of it")
        raise NovaMeshError(Code.NOT_FOUND, "the rest is gone")

    monkeypatch.setattr(cli, "app", command)
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert cli.main([]) == MEANINGS[Code.STORAGE].exit
    assert capsys.readouterr().err.startswith("error: cannot write the output")


def test_trouble_with_a_file_of_ours_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (OSError(errno.ENOSPC, "full", "a file"), OSError(errno.EINVAL, "what?")):
        monkeypatch.setattr(cli, "app", _raise(error))
        with pytest.raises(OSError, match=r"full|what"):
            cli.main([])


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
@pytest.mark.parametrize(("command", "status"), [("key new", 0), ("bogus", 2)])
def test_what_a_supervisor_closed_is_no_traceback(
    closed: str, command: str, status: int, tmp_path: Path
) -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", f"{sys.executable} -m novamesh {command} {closed}"],
        env={"PATH": os.environ["PATH"], "NOVAMESH_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_stdout_that_lacks_characters_shows_question_marks(tmp_path: Path, encoding: str) -> None:
    home = tmp_path / "h\N{EURO SIGN}"
    shown = _write_to("-", "config path", home, PYTHONIOENCODING=encoding)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.endswith("/h?/config.toml\n")
    made = _write_to("-", "key new --json", home, PYTHONIOENCODING=encoding)
    assert json.loads(made.stdout)["file"] == str(home / "client.key")


def _write_to(
    target: str, command: str, home: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    """A command whose stdout is that file, or `-` for a pipe that is read."""
    with Path(os.devnull if target == "-" else target).open("w") as file:
        return subprocess.run(
            [sys.executable, "-m", "novamesh", *command.split()],
            env={"PATH": os.environ["PATH"], "NOVAMESH_HOME": str(home), **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if target == "-" else file,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            check=False,
        )


def test_help_loads_no_part_and_no_grpc(tmp_path: Path) -> None:
    code = (
        "import sys, novamesh.cli; status = novamesh.cli.main(['--help']);"
        "heavy = {'grpc', 'torch', 'novamesh_node', 'novamesh_coordinator', 'novamesh.client'};"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else status)"
    )
    started = time.process_time()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "demo" in done.stdout
    assert time.process_time() - started < 1
