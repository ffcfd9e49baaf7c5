"""libFuzzer on one target, in a process of its own: python -m support.fuzz.fuzzer TARGET [OPTIONS]

Needs the extra `fuzz`; options are libFuzzer's. Half of the mutations are the edits of the suite,
the others libFuzzer's own.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import atheris

ROOT = Path(__file__).parents[3]
OURS = (
    "novamesh", "novamesh_proto", "novamesh_broker", "novamesh_coordinator", "novamesh_node",
    "novamesh_engine",
)  # fmt: skip
EDITS_MAX = 4

# The loader of an editable install gives atheris no code to instrument: then nothing is covered.
sys.meta_path[:] = [
    one for one in sys.meta_path if not type(one).__name__.startswith("ScikitBuild")
]
ROOTS = ("client", "proto", "broker", "coordinator", "node", "engine")
sys.path[:0] = [str(ROOT / root) for root in ROOTS]

with atheris.instrument_imports(include=list(OURS)):
    from support.fuzz.corpus import feed_quietly
    from support.fuzz.edits import edit
    from support.fuzz.targets import targets


def main() -> None:
    """Feed one target until the time is over or something comes out that is no refusal."""
    target = targets()[sys.argv[1]]

    def one(data: bytes) -> None:
        feed_quietly(target, data)

    def mutate(data: bytes, bytes_max: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < 0.5:
            return bytes(atheris.Mutate(data, bytes_max))
        for _ in range(rng.randint(1, EDITS_MAX)):
            data = edit(data, target.shape, rng.getrandbits(32), bytes_max)
        return data

    atheris.Setup([sys.argv[0], *sys.argv[2:]], one, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
