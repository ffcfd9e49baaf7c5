"""How a pull shows how far it is: bars on a terminal, a line for each file and shard elsewhere.

All of it is talk, on stderr; names of files are a stranger's text and are cleaned.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from novamesh_engine.quant.convert import Step
from novamesh_node.screens import clean
from novamesh_node.workspace import gigabytes


class Lines:
    """One line when a file has come and when a shard is made."""

    def __init__(
        self, say: Callable[[str], None], seconds: Callable[[], float] = time.monotonic
    ) -> None:
        self._say = say
        self._seconds = seconds
        self._began: dict[str, tuple[float, int]] = {}
        self._shard = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is held."""

    def note(self, text: str) -> None:
        """A line."""
        self._say(clean(text))

    def expect(self, download_bytes: int, profile_bytes: int) -> None:
        """What comes is told as it comes."""

    def receive(self, name: str, position: int, size: int) -> None:
        """A line when a file of weights is whole."""
        if not name.endswith(".safetensors"):
            return
        now = self._seconds()
        since, start = self._began.setdefault(name, (now, position))
        if position >= size:
            speed = (size - start) / max(now - since, 0.001)
            self.note(f"downloaded {name}  {gigabytes(size)}, {speed / 1e6:.1f} MB/s")

    def convert(self, step: Step) -> None:
        """A line when a shard begins, and at the end."""
        if step.written >= step.total:
            self.note(f"converted  {gigabytes(step.total)}")
        else:
            self._begin("converting shard", step)

    def copy(self, step: Step) -> None:
        """A line when a file begins, and at the end."""
        if step.written >= step.total:
            self.note(f"copied  {gigabytes(step.total)}")
        else:
            self._begin("copying file", step)

    def _begin(self, what: str, step: Step) -> None:
        if step.shard != self._shard:
            self._shard = step.shard
            self.note(f"{what} {step.shard} of {step.shards}")


class Bars:
    """A bar for what is downloaded and one for what is made of it, with speeds and times."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), DownloadColumn(),
            TransferSpeedColumn(), TimeRemainingColumn(),
            console=console,
        )  # fmt: skip
        self._download: TaskID | None = None
        self._profile: TaskID | None = None
        self._positions: dict[str, int] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def note(self, text: str) -> None:
        """A line above the bars."""
        self._progress.console.print(clean(text), markup=False, highlight=False, soft_wrap=True)

    def expect(self, download_bytes: int, profile_bytes: int) -> None:
        """The bars."""
        if download_bytes:
            self._download = self._progress.add_task("download", total=download_bytes)
        self._profile = self._progress.add_task("profile", total=profile_bytes)

    def receive(self, name: str, position: int, size: int) -> None:
        """More of a file is here."""
        before = self._positions.get(name, position)
        self._positions[name] = position
        if self._download is not None:
            self._progress.update(
                self._download, advance=position - before, description=clean(f"download {name}")
            )

    def convert(self, step: Step) -> None:
        """More of the profile is made."""
        self._advance("convert shard", step)

    def copy(self, step: Step) -> None:
        """More of the profile is here."""
        self._advance("copy file", step)

    def _advance(self, what: str, step: Step) -> None:
        if self._profile is not None:
            self._progress.update(
                self._profile, completed=step.written,
                description=f"{what} {step.shard} of {step.shards}",
            )  # fmt: skip


def meter(say: Callable[[str], None]) -> Lines | Bars:
    """What fits stderr."""
    if sys.stderr.isatty():
        return Bars(Console(stderr=True))
    return Lines(say)
