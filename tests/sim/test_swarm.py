"""Whole worlds from seeds: production code under faults and liars, and no promise of it breaks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.sim.campaign import run_seed
from support.sim.liars import LIES
from support.sim.lying_clients import LYING_CLIENTS
from support.sim.sabotage import SABOTAGES, Sabotage
from support.sim.sabotage_absence import ABSENCE_SABOTAGES
from support.sim.sabotage_direct import DIRECT_SABOTAGES
from support.sim.swarm import Swarm

SEEDS = 300
DIRECT_SEEDS = 60
BLOCK = 30
ANSWERED_SHARE = 0.3
TESTS = Path(__file__).parent.parent


@pytest.mark.parametrize("first", range(0, SEEDS, BLOCK))
def test_nothing_breaks(first: int) -> None:
    verdicts = [run_seed(seed) for seed in range(first, first + BLOCK)]
    failed = {verdict.seed: verdict.problems for verdict in verdicts if verdict.problems}
    assert not failed, f"replay: python -m support.sim.campaign --seed {min(failed)}"
    # A world in which nobody is ever answered breaks no promise either.
    answered, wished = (sum(getattr(v, n) for v in verdicts) for n in ("answered", "wished"))
    assert answered >= wished * ANSWERED_SHARE


@pytest.mark.parametrize("first", range(0, DIRECT_SEEDS, BLOCK))
def test_nothing_breaks_on_direct_paths(first: int) -> None:
    """Nodes that listen, clients that reach them or not, and work while the pool is away."""
    verdicts = [run_seed(seed, direct=True) for seed in range(first, first + BLOCK)]
    failed = {verdict.seed: verdict.problems for verdict in verdicts if verdict.problems}
    assert not failed, f"replay: python -m support.sim.campaign --direct --seed {min(failed)}"
    assert sum(v.answered for v in verdicts) >= sum(v.wished for v in verdicts) * ANSWERED_SHARE


def test_every_lie_is_told(tmp_path: Path) -> None:
    told: set[str] = set()
    for seed in range(SEEDS):
        swarm = Swarm(seed, tmp_path)
        told |= {line.split()[-1] for line in swarm.trace}
        swarm.loop.close()
    assert told == {*LIES, *(kind.__name__ for kind in LYING_CLIENTS)}


@pytest.mark.parametrize(
    "sabotage",
    [*SABOTAGES, *ABSENCE_SABOTAGES, *DIRECT_SABOTAGES],
    ids=lambda one: one.bug.__name__,
)
def test_the_simulator_finds_it(sabotage: Sabotage, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the promise that it breaks, in one of the seeds; those come first that are known to."""
    sabotage.bug(monkeypatch)
    seeds = sorted(range(SEEDS), key=lambda seed: abs(seed - sabotage.near))
    worlds = (run_seed(seed, sabotage.direct) for seed in seeds)
    assert any(sabotage.finds in problem for world in worlds for problem in world.problems)


def test_a_seed_gives_the_same_run_in_another_process() -> None:
    """Several seeds in one process each: to load all of production takes longer than they do."""
    worlds = ((3, False), (18, True), (7, True))
    here = [run_seed(*world).digest for world in worlds]
    play = f"print(*(run_seed(*world).digest for world in {worlds}))"
    for hash_seed in ("1", "2"):
        shown = subprocess.run(
            [sys.executable, "-c", f"from support.sim.campaign import run_seed; {play}"],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            cwd=TESTS,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert shown.split() == here
