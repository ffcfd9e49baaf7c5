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
PROGRESS = 500  # seeds


@dataclass(frozen=True)
class Verdict:
    """What came of a seed."""

    seed: int
    digest: str
    problems: tuple[str, ...]
    trace: tuple[str, ...]
    wished: int = 0
    answered: int = 0


def run_seed(seed: int) -> Verdict:
    """Live through the world of a seed, and look for what is broken after it."""
    usual = str(SHARED_MEMORY) if os.access(SHARED_MEMORY, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="swarm-", dir=usual) as folder:
        swarm = Swarm(seed, Path(folder))
        try:
            swarm.run()
        except Exception as error:
            # The boundary of a world: what is left of it is judged all the same.
            swarm.findings.append(f"the world ended: {error!r}")
        problems = broken(swarm)
        wishes = [wish for client in swarm.clients for wish in client.wishes]
        answered = sum(wish.completion is not None for wish in wishes)
        told = (tuple(problems), tuple(swarm.trace))
        return Verdict(seed, swarm.digest, *told, len(wishes), answered)


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
    began_s, failed, wished, answered = time.monotonic(), 0, 0, 0
    seeds = range(options.first, options.first + options.seeds)
    with ProcessPoolExecutor() as pool:
        for number, verdict in enumerate(pool.map(run_seed, seeds, chunksize=20), 1):
            wished, answered = wished + verdict.wished, answered + verdict.answered
            if verdict.problems:
                failed += 1
                print(f"seed {verdict.seed}:", *verdict.problems[:5], sep="\n  ", flush=True)
            if number % PROGRESS == 0:
                took_s = time.monotonic() - began_s
                print(f"{number} seeds, {failed} failed, {took_s:.0f} s", file=sys.stderr)
    took_s = time.monotonic() - began_s
    served = f"{answered} of {wished} wishes answered"
    print(f"{len(seeds)} seeds, {failed} failed, {served}, {took_s:.0f} s")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
