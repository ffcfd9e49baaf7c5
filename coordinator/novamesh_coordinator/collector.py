"""How often Python's garbage collector looks while a coordinator runs.

A long log makes millions of objects, none of them garbage: the collector does not run while it is
read, and never looks at what was read again. Later it looks less often than in programs with less
to hold. Whoever leaves finds the collector as it was.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from typing import Final

THRESHOLDS: Final = (10_000, 20, 20)


@contextlib.contextmanager
def calm_collector() -> Iterator[Callable[[], None]]:
    """No collection until the function given is called, which is when all is loaded."""
    usual = gc.get_threshold()
    gc.disable()
    try:
        yield _freeze
    finally:
        gc.unfreeze()
        gc.set_threshold(*usual)
        gc.enable()


def _freeze() -> None:
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
    gc.enable()
