"""Many worlds, one after the other: `python -m support.sim.campaign --seeds 10000`.

Each failing seed is printed with what is wrong; `--seed N` plays one of them again and shows what
happened. The same seed gives the same run on every machine.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from support.sim.invariants import broken
from support.sim.swarm import Swarm

SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Verdict:
    """What came of a seed."""

    seed: int
    digest: str
    problems: tuple[str, ...]
    trace: tuple[str, ...]


def run_seed(seed: int) -> Verdict:
    """Live through the world of a seed, and look for what is broken after it."""
    usual = str(SHARED_MEMORY) if os.access(SHARED_MEMORY, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="swarm-", dir=usual) as folder:
        swarm = Swarm(seed, Path(folder))
        try:
            swarm.run()
            problems = broken(swarm)
        except Exception as error:
            # The boundary of a world: a party that cannot even start is a finding.
            problems = [f"the world ended: {error!r}"]
        return Verdict(seed, swarm.digest, tuple(problems), tuple(swarm.trace))


def main() -> int:
    """Run seeds on all cores; 1 if any failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=300, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--seed", type=int, help="play this one, and show what happened")
    options = parser.parse_args()
    if options.seed is not None:
        verdict = run_seed(options.seed)
        print(*verdict.trace, f"digest {verdict.digest}", *verdict.problems, sep="\n")
        return bool(verdict.problems)
    began_s, failed = time.monotonic(), 0
    seeds = range(options.first, options.first + options.seeds)
    with ProcessPoolExecutor() as pool:
        for verdict in pool.map(run_seed, seeds, chunksize=20):
            if verdict.problems:
                failed += 1
                print(f"seed {verdict.seed}:", *verdict.problems[:5], sep="\n  ", flush=True)
    took_s = time.monotonic() - began_s
    print(f"{len(seeds)} seeds, {failed} failed, {took_s:.0f} s")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
