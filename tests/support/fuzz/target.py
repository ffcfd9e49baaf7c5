"""One way in for strangers' bytes, fed alike by hypothesis, by libFuzzer and from the corpus."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from support.fuzz.tree import Shape


@dataclass(frozen=True)
class Target:
    """`feed` takes any bytes, and may raise NovaMeshError; whatever else comes out is a bug.

    `samples` are taken without a refusal. `shape` says how they are edited, None for bytes that are
    no protobuf. `close` looks at what was fed, and raises AssertionError if it does not work on.
    """

    name: str
    feed: Callable[[bytes], object]
    samples: tuple[bytes, ...]
    shape: Shape | None = None
    close: Callable[[], None] = lambda: None

    @property
    def folder(self) -> str:
        """Name of its folder in the corpus."""
        return self.name.lower().replace(" ", "-").replace("'", "")
