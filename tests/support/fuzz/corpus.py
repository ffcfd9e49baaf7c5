"""The corpus: for each target a folder of small files, each of which gets somewhere no other does.

python -m support.fuzz.corpus makes it small again: of the files there are, of those that campaigns
found and of the samples, it keeps those that together take every step from line to line that all of
them take, the short ones first.
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
from collections.abc import Iterable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final

from novamesh_proto.errors import NovaMeshError
from support.fuzz.target import Target
from support.fuzz.targets import targets

ROOT: Final = Path(__file__).parents[2] / "fuzz" / "corpus"
FOUND: Final = Path(__file__).parents[3] / "build" / "fuzz"
FILE_BYTES_MAX: Final = 8 * 1024
FOLDER_BYTES_MAX: Final = 24 * 1024
OURS: Final = ("novamesh",)  # packages whose lines count

Line = tuple[str, int, int]  # file, from line, to line


def entries(name: str) -> list[Path]:
    """The files of a target."""
    return sorted(path for path in (ROOT / name).glob("*") if path.is_file())


def feed_quietly(target: Target, data: bytes) -> None:
    """Feed it; a refusal is as good as anything."""
    with contextlib.suppress(NovaMeshError):
        target.feed(data)


def shrink(target: Target, found: Iterable[bytes]) -> list[bytes]:
    """The files worth keeping, within FOLDER_BYTES_MAX."""
    by_size = sorted({*target.samples, *found}, key=lambda data: (len(data), data))
    kept: list[bytes] = []
    known: set[Line] = set()
    size = 0
    for data in by_size:
        if len(data) > FILE_BYTES_MAX or size + len(data) > FOLDER_BYTES_MAX:
            continue
        with Traced() as traced:
            feed_quietly(target, data)
        if traced.lines - known:
            known |= traced.lines
            kept.append(data)
            size += len(data)
    return kept


def write(name: str, kept: Iterable[bytes]) -> int:
    """Make these a target's files; how many bytes there are."""
    folder = ROOT / name
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {hashlib.sha256(data).hexdigest()[:16]: data for data in kept}
    for path in entries(name):
        if path.name not in wanted:
            path.unlink()
    for file, data in wanted.items():
        (folder / file).write_bytes(data)
    return sum(map(len, wanted.values()))


class Traced:
    """Which steps from line to line are made in our packages while it is open."""

    def __init__(self) -> None:
        self.lines: set[Line] = set()
        self._ours: dict[CodeType, bool] = {}
        self._before: Any = None

    def __enter__(self) -> Traced:
        self._before = sys.gettrace()
        sys.settrace(self._call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _call(self, frame: FrameType, event: str, argument: object) -> Any:
        code = frame.f_code
        if code not in self._ours:
            module = str(frame.f_globals.get("__name__", ""))
            self._ours[code] = module.startswith(OURS)
        if not self._ours[code]:
            return None
        last = 0

        def line(frame: FrameType, event: str, argument: object) -> Any:
            nonlocal last
            if event == "line":
                self.lines.add((code.co_filename, last, frame.f_lineno))
                last = frame.f_lineno
            return line

        return line


def main() -> None:
    """Make the corpus small again, from itself and from what campaigns found."""
    for name, target in targets().items():
        found = [*entries(name), *(FOUND / name / "inputs").glob("*")]
        kept = shrink(target, (path.read_bytes() for path in found))
        print(f"{name:22} {len(found):6} files, {len(kept):4} kept, {write(name, kept)} bytes")


if __name__ == "__main__":
    main()
