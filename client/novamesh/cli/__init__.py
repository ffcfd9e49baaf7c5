"""`novamesh …`: every command of every part, each loaded when it is asked for.

Rules: stdout is data, stderr is talk; a refusal is `error:` then `hint:` and the exit status of the
one table of errors; usage errors are 2. The parts are named by import string, so that no package
of ours depends on another through the command line, and `--help` waits for none of them.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import importlib.metadata
import io
import os
import sys
from collections.abc import Sequence
from typing import Final

from cyclopts import App, CycloptsError, UnknownCommandError

from novamesh.cli.output import complain
from novamesh_proto.errors import MEANINGS, Code, NovaMeshError

DISTRIBUTION: Final = "novamesh"

_COMMANDS: Final = (
    (
        "demo",
        "novamesh.cli.demo:demo",
        "Start a whole pool on this machine and use it.",
    ),
    ("run", "novamesh.cli.run:run", "Ask a model of the pool; the answer streams to stdout."),
    ("pool", "novamesh.cli.pool:app", "The pool this machine belongs to."),
    ("jobs", "novamesh.cli.jobs:app", "Your jobs in the pool."),
    ("receipt", "novamesh.cli.receipt:app", "Receipts you hold; they verify offline."),
    ("models", "novamesh_node.cli:models_app", "This machine's shelf of models."),
    ("node", "novamesh_node.cli:app", "Lend this machine to a pool."),
    ("coordinator", "novamesh_coordinator.cli:app", "Run a pool."),
    ("engine", "novamesh_engine.cli:app", "The inference engine on this machine."),
    ("recipe", "novamesh_engine.recipe.cli:app", "Make the built-in model again."),
    ("key", "novamesh.cli.key:app", "This machine's identities."),
    ("net", "novamesh.cli.net:app", "The network between this machine and the pool."),
    ("config", "novamesh.cli.config:app", "What this machine is set to."),
    ("doctor", "novamesh.cli.doctor:doctor", "Check everything novamesh needs here."),
)
_HELP: Final = """Volunteers' GPUs as one inference network whose answers carry proofs.

First steps:  novamesh demo   novamesh pool join CODE   novamesh run MODEL
"""
# Which extra brings what a command imports beyond the base installation.
_EXTRAS: Final = {
    "node": "node",
    "models": "node",
    "demo": "node,coordinator",
    "engine": "engine",
    "recipe": "engine",
    "coordinator": "coordinator",
}
# What a write to stdout meets where there is no room, or no device any more.
_UNWRITABLE: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})


def _version() -> str:
    return f"novamesh {importlib.metadata.version(DISTRIBUTION)}"


def _app() -> App:
    app = App(
        name="novamesh",
        help=_HELP,
        version=_version,
        help_format="plaintext",
    )
    for name, target, text in _COMMANDS:
        app.command(target, name=name, help=text)
    return app


app = _app()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; the exit status."""
    _open_what_is_closed()
    _show_what_can_be_shown()
    try:
        return _run(list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:
        return MEANINGS[Code.CANCELLED].exit
    except BrokenPipeError:
        _drop_output()
        return MEANINGS[Code.CANCELLED].exit
    except OSError as error:
        if error.errno not in _UNWRITABLE or error.filename is not None:
            raise
        _drop_output()
        with contextlib.suppress(OSError):  # stderr may be what is full
            complain(f"cannot write the output: {error.strerror}", "write it elsewhere")
        return MEANINGS[Code.STORAGE].exit


def _run(tokens: Sequence[str]) -> int:
    """The exit status of a command, its refusal told."""
    try:
        result = app(
            tokens,
            exit_on_error=False,
            print_error=False,
            result_action="return_value",
        )
        sys.stdout.flush()
    except UnknownCommandError as error:
        complain(*_unknown(error))
        return MEANINGS[Code.BAD_REQUEST].exit
    except CycloptsError as error:
        complain(" ".join(str(error).split()).rstrip("."), f"{_command(error)} --help")
        return MEANINGS[Code.BAD_REQUEST].exit
    except NovaMeshError as error:
        complain(error.message, error.hint)
        return error.meaning.exit
    except ImportError as error:
        return _missing(error, tokens)
    return result if isinstance(result, int) else 0


def _open_what_is_closed() -> None:
    """Python has no stdout or stderr where a supervisor closed it; nobody reads there, then."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, io.TextIOWrapper(io.FileIO(os.devnull, "w"), line_buffering=True))


def _show_what_can_be_shown() -> None:
    """What the encoding of stdout lacks is shown as a question mark; it ends no command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")


def _drop_output() -> None:
    """Nobody can be given what waits in stdout; Python must not complain about it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _unknown(error: UnknownCommandError) -> tuple[str, str]:
    """Message and hint for a command that does not exist. No part is imported to suggest one."""
    word = error.unused_tokens[0] if error.unused_tokens else ""
    names = [name for name in error.app or app if not name.startswith("-")]
    near = difflib.get_close_matches(word, names, 1)
    hint = f"did you mean {near[0]}?" if near else f"{_command(error)} --help"
    return f"there is no command {word!r}", hint


def _command(error: CycloptsError) -> str:
    return " ".join(("novamesh", *(error.command_chain or ())))


def _missing(error: ImportError, tokens: Sequence[str]) -> int:
    """A part whose libraries are not installed; cyclopts wraps what a part's import raises."""
    cause = error.__cause__ if isinstance(error.__cause__, ImportError) else error
    command = next((token for token in tokens if not token.startswith("-")), "")
    if command not in _EXTRAS or (cause.name or DISTRIBUTION).startswith(DISTRIBUTION):
        raise error
    complain(
        f"novamesh {command} needs {cause.name}, which is not installed",
        f"pip install 'novamesh[{_EXTRAS[command]}]'",
    )
    return MEANINGS[Code.UNSUPPORTED].exit
