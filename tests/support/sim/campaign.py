"""Many worlds, one after the other: `python -m support.sim.campaign --seeds 10000`.

Every seed gives a world in which the pool relays everything; each DIRECT_EVERY-th gives another one
with direct paths. Each failing seed is printed with what is wrong; `--seed N`, perhaps with
`--direct`, plays one of them again and shows what happened. The same seed gives the same run on
every machine.
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
PROGRESS = 500  # worlds
DIRECT_EVERY = 3


@dataclass(frozen=True)
class Verdict:
    """What came of a seed."""

    seed: int
    direct: bool
    digest: str
    problems: tuple[str, ...]
    trace: tuple[str, ...]
    wished: int = 0
    answered: int = 0


def run_seed(seed: int, direct: bool = False) -> Verdict:
    """Live through the world of a seed, and look for what is broken after it."""
    usual = str(SHARED_MEMORY) if os.access(SHARED_MEMORY, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="swarm-", dir=usual) as folder:
        swarm = Swarm(seed, Path(folder), direct)
        try:
            swarm.run()
        except Exception as error:
            # The boundary of a world: what is left of it is judged all the same.
            swarm.findings.append(f"the world ended: {error!r}")
        problems = broken(swarm)
        wishes = [wish for client in swarm.clients for wish in client.wishes]
        answered = sum(wish.completion is not None for wish in wishes)
        told = (tuple(problems), tuple(swarm.trace))
        return Verdict(seed, direct, swarm.digest, *told, len(wishes), answered)


def main() -> int:
    """Run seeds on all cores; 1 if any failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=300, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--seed", type=int, help="play this one, and show what happened")
    parser.add_argument("--direct", action="store_true", help="only worlds with direct paths")
    options = parser.parse_args()
    if options.seed is not None:
        verdict = run_seed(options.seed, options.direct)
        print(*verdict.trace, f"digest {verdict.digest}", *verdict.problems, sep="\n")
        return bool(verdict.problems)
    began_s, failed, wished, answered = time.monotonic(), 0, 0, 0
    seeds = range(options.first, options.first + options.seeds)
    worlds = [] if options.direct else [(seed, False) for seed in seeds]
    worlds += [(seed, True) for seed in seeds if options.direct or seed % DIRECT_EVERY == 0]
    with ProcessPoolExecutor() as pool:
        verdicts = pool.map(run_seed, *zip(*worlds, strict=True), chunksize=20)
        for number, verdict in enumerate(verdicts, 1):
            wished, answered = wished + verdict.wished, answered + verdict.answered
            if verdict.problems:
                failed += 1
                where = f"seed {verdict.seed}{' --direct' if verdict.direct else ''}:"
                print(where, *verdict.problems[:5], sep="\n  ", flush=True)
            if number % PROGRESS == 0:
                took_s = time.monotonic() - began_s
                print(f"{number} worlds, {failed} failed, {took_s:.0f} s", file=sys.stderr)
    took_s = time.monotonic() - began_s
    served = f"{answered} of {wished} wishes answered"
    print(f"{len(worlds)} worlds, {failed} failed, {served}, {took_s:.0f} s")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
