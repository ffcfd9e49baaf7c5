"""libFuzzer on one target, in a process of its own: python -m support.fuzz.fuzzer TARGET [OPTIONS]

Needs the extra `fuzz`; options are libFuzzer's. Half of the mutations are the edits of the suite,
the others libFuzzer's own.
"""

from __future__ import annotations

import random
import sys

import atheris

OURS = ("novamesh", "novamesh_proto", "novamesh_coordinator", "novamesh_node", "novamesh_engine")
EDITS_MAX = 4

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
