"""Golden transcripts: what somebody types, and everything the screen answers.

A transcript is a text file. A line that begins with

    @    sets the scene: `@ pool`, `@ script NAME`, `@ without MODULE`, `@ file NAME TEXT`, …
    $    is a command; $CODE, $JOB, $RECEIPT and $HOME stand for the pool's join code, the newest
         job, the newest receipt and the member's folder
    <    is a line of its stdin
    ?    its exit status
    >    a line of its stdout, !  a line of its stderr
    #    says why, and is kept

What differs between two runs (ids, ports, durations, dates) is replaced by placeholders of the same
kind before anything is compared; NOVAMESH_UPDATE_TRANSCRIPTS=1 writes the files anew.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

SCENE, COMMAND, STDIN, STATUS, STDOUT, STDERR, REMARK = "@$<?>!#"

_VOLATILE: Final = (
    (r"127\.0\.0\.1:\d+", "127.0.0.1:PORT"),
    (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "YYYY-MM-DD hh:mm:ss"),
    (r"\d+\.\d GiB free at [^\"\n]*", "N GiB free at FOLDER"),
    (
        r"(python +|\"detail\": \"|(?:grpcio|protobuf|cryptography|novamesh) )\d+\.\d+\.\d+",
        r"\1X.Y.Z",
    ),
    (r"-?\b\d+(\.\d+)? (s|ms)\b", r"N \2"),
    # Whether a fake answer's speed can be told is a matter of microseconds.
    (
        r", (then \d+(\.\d+)? tokens/s|all \d+ after N s: too short to tell a speed)",
        ", then N tokens/s",
    ),
    (r"\b\d+(\.\d+)? tokens/s", "N tokens/s"),
    (r"(\"(?:ttft_s|total_s|tokens_per_s|answered_ms|clock_offset_ms)\": )-?[\d.]+", r"\1N"),
    (r"(\"witnessed_(?:ttft_us|tokens_per_s)\": )(?:[\d.]+|null)", r"\1N"),
    # The built-in model may be trained anew.
    (
        r"(?m)^(nova-pico  )[0-9a-f]{12}  nova    \S+ MB  \S+ of \S+ ",
        r"\1DIGEST......  nova    SIZE    PARAMETERS ",
    ),
    (r"(?m)^(size +)\S+ MB", r"\1SIZE"),
    (r"(digest +sha256:)[0-9a-f]{64}", r"\1DIGEST"),
    (r"parameters  [\d,]+, active per token [\d,]+", "parameters  N, active per token N"),
    (r"(file +\S+  )[\d,]+ bytes", r"\1N bytes"),
    (r"/\S+/novamesh_engine/builtin", "BUILTIN"),
    (r"\"findings\": \[[^]]*\]", '"findings": [..]'),
)


@dataclass
class Exchange:
    """One command and its answer."""

    command: str
    stdin: list[str] = field(default_factory=list)
    status: int = 0
    stdout: list[str] = field(default_factory=list)
    stderr: list[str] = field(default_factory=list)
    before: list[str] = field(default_factory=list)  # scenes and remarks

    def lines(self) -> list[str]:
        """As it stands in the file."""
        return [
            *self.before,
            f"{COMMAND} {self.command}",
            *(f"{STDIN} {line}" for line in self.stdin),
            f"{STATUS} {self.status}",
            *(f"{STDOUT} {line}".rstrip() for line in self.stdout),
            *(f"{STDERR} {line}".rstrip() for line in self.stderr),
        ]

    def words(self, variables: dict[str, str]) -> list[str]:
        """The command line with its variables filled in, the program's name left out."""
        words = shlex.split(self.command)[1:]
        for name, value in variables.items():
            words = [word.replace(f"${name}", value) for word in words]
        return words


def read_transcript(path: Path) -> list[Exchange]:
    """The exchanges of a file, in order."""
    exchanges: list[Exchange] = []
    before: list[str] = []
    for line in path.read_text().splitlines():
        kind, text = line[:1], line[2:]
        if kind in (SCENE, REMARK, ""):
            before.append(line)
        elif kind == COMMAND:
            exchanges.append(Exchange(text, before=before))
            before = []
        elif kind == STDIN:
            exchanges[-1].stdin.append(text)
        elif kind == STATUS:
            exchanges[-1].status = int(text)
        elif kind == STDOUT:
            exchanges[-1].stdout.append(text)
        elif kind == STDERR:
            exchanges[-1].stderr.append(text)
        else:
            raise ValueError(f"{path.name}: what is {line!r}?")
    return exchanges


def settle(text: str, known: dict[str, str]) -> list[str]:
    """Output lines with everything volatile replaced; `known` maps exact texts to placeholders."""
    for exact in sorted(known, key=len, reverse=True):
        text = text.replace(exact, known[exact])
    for pattern, placeholder in _VOLATILE:
        text = re.sub(pattern, placeholder, text)
    return [line.rstrip() for line in text.splitlines()]
