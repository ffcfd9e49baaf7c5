"""Processes that keep a model loaded and take turns: an order a line in, one line of JSON out.

An order is a verb and whole numbers, so that a player can be written in any language. A player
says one line of JSON by itself, when its model is ready. While one plays, the others sleep on their
pipe.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final

READY_S: Final = 600.0
TURN_S: Final = 600.0
CALM_S: Final = 0.05  # until the threads of whoever played last have stopped spinning
STOP_S: Final = 30.0
_MODULES: Final = Path(__file__).parents[1]

Reply = dict[str, Any]
Verb = Callable[..., Mapping[str, object]]


class Player:
    """One process; use it as a context. What it says on stderr is kept in a log."""

    def __init__(self, name: str, command: Sequence[str], log: Path) -> None:
        self.name = name
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=_MODULES,
            )
        self._rest = b""
        self.ready: Reply = self._hear(READY_S)

    def __enter__(self) -> Player:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def ask(self, verb: str, *numbers: int) -> Reply:
        """Have it play one turn."""
        time.sleep(CALM_S)
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join((verb, *map(str, numbers))).encode() + b"\n")
        self._process.stdin.flush()
        return self._hear(TURN_S)

    def close(self) -> None:
        """Its orders end, and so does it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _hear(self, within_s: float) -> Reply:
        stream, deadline = self._process.stdout, time.monotonic() + within_s
        assert stream is not None
        with selectors.DefaultSelector() as selector:
            selector.register(stream, selectors.EVENT_READ)
            while b"\n" not in self._rest:
                ready = selector.select(max(0.0, deadline - time.monotonic()))
                piece = os.read(stream.fileno(), 1 << 16) if ready else b""
                if not piece:
                    raise self._lost("fell silent" if not ready else "ended")
                self._rest += piece
        line, _, self._rest = self._rest.partition(b"\n")
        reply: Reply = json.loads(line)
        return reply

    def _lost(self, how: str) -> RuntimeError:
        self._process.kill()
        tail = self._log.read_text(errors="replace")[-2000:]
        return RuntimeError(f"{self.name} {how}; its log ends:\n{tail}")


def start_module(module: str, log: Path, *arguments: str) -> Player:
    """A player that is a module of ours."""
    return Player(module, [sys.executable, "-m", module, *arguments], log)


def play(prepare: Callable[[], tuple[Mapping[str, object], Mapping[str, Verb]]]) -> None:
    """The other end, in Python: get ready, then follow orders until there are no more.

    `prepare` gives what to say when ready, and what each verb does.
    """
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # a library that prints must not be a reply
    ready, verbs = prepare()
    print(json.dumps(ready), file=answers, flush=True)
    for line in sys.stdin:
        verb, *numbers = line.split()
        print(json.dumps(verbs[verb](*map(int, numbers))), file=answers, flush=True)
