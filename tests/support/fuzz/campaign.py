"""libFuzzer at every target for some minutes: make fuzz MINUTES=30, or one of them with --target.

The minutes are shared by the targets and by the cores. What is found stays in build/fuzz, and the
next time goes on from there. A crash is printed with how to replay it, and makes the status 1.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from support.fuzz.corpus import FOUND, entries
from support.fuzz.target import Target
from support.fuzz.targets import targets

START_S: Final = 8.0  # a target's process takes about that long to begin
LEAST_S: Final = 5
INPUT_BYTES_MAX: Final = 32 * 1024
HANG_S: Final = 60
LATE_S: Final = 300  # a process that does not end after its time
EXECUTED: Final = re.compile(r"stat::number_of_executed_units:\s+(\d+)")
COVERED: Final = re.compile(r"cov: (\d+)")
TOLD_LINES: Final = 40


@dataclass(frozen=True)
class Outcome:
    """What became of one target."""

    name: str
    executed: int
    covered: int
    crash: Path | None
    told: str


def main() -> None:
    """Everything."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--target", action="append", choices=sorted(targets()))
    chosen = parser.parse_args()
    wanted = [targets()[name] for name in chosen.target or targets()]
    cores = min(os.cpu_count() or 1, len(wanted))
    each_s = chosen.minutes * 60 * cores / len(wanted) - START_S
    began_s = time.monotonic()
    with ThreadPoolExecutor(cores) as pool:
        work = [pool.submit(run, target, max(LEAST_S, round(each_s))) for target in wanted]
        outcomes = [each.result() for each in work]
    for outcome in outcomes:
        tell(outcome)
    crashes = sum(outcome.crash is not None for outcome in outcomes)
    executed = sum(outcome.executed for outcome in outcomes)
    took_s = time.monotonic() - began_s
    print(f"{len(outcomes)} targets, {executed} inputs, {crashes} crashed, {took_s:.0f} s")
    blind = not all(outcome.covered for outcome in outcomes)
    sys.exit(1 if crashes or blind else 0)


def run(target: Target, seconds: int) -> Outcome:
    """One target for so long, in a process of its own."""
    folder = FOUND / target.folder
    found, seeds, crashes = folder / "inputs", folder / "seeds", folder / "crashes"
    for each in (found, seeds, crashes):
        each.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate((*target.samples, *_read(entries(target.folder)))):
        (seeds / str(number)).write_bytes(data)
    before = set(crashes.iterdir())
    command = [
        sys.executable, "-m", "support.fuzz.fuzzer", target.folder, f"-max_total_time={seconds}",
        f"-max_len={INPUT_BYTES_MAX}", f"-timeout={HANG_S}", "-print_final_stats=1",
        f"-artifact_prefix={crashes}/", str(found), str(seeds),
    ]  # fmt: skip
    log = folder / "log"
    with log.open("w") as out:
        done = subprocess.run(
            command, stdout=out, stderr=subprocess.STDOUT, check=False, timeout=seconds + LATE_S
        )
    text = log.read_text(errors="replace")
    executed, covered = EXECUTED.findall(text), COVERED.findall(text)
    new = sorted(set(crashes.iterdir()) - before)
    crash = new[0] if new else (log if done.returncode else None)
    told = "\n".join(text.splitlines()[-TOLD_LINES:]) if crash else ""
    return Outcome(
        target.folder, int((executed or ["0"])[-1]), int((covered or ["0"])[-1]), crash, told
    )


def tell(outcome: Outcome) -> None:
    """One line, and what somebody needs who looks into a crash."""
    verdict = "CRASHED" if outcome.crash else "ok" if outcome.covered else "BLIND: no coverage"
    print(f"{outcome.name:22} {outcome.executed:9} inputs {outcome.covered:6} edges  {verdict}")
    if outcome.crash is not None:
        print(outcome.told)
        print(f"  kept:   {outcome.crash}")
        replay = f"-m support.fuzz.replay {outcome.name} {outcome.crash}"
        print(f"  replay: cd tests && {sys.executable} {replay}")


def _read(paths: list[Path]) -> list[bytes]:
    return [path.read_bytes() for path in paths]


if __name__ == "__main__":
    main()
