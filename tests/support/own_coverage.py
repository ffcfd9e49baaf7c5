"""Is every branch of a module walked by its own tests? `python -m support.own_coverage`.

Runs the own test files of each module alone, as many at once as there are cores, prints a line a
module, and exits with 1 if a branch of any was not walked.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.own_tests import ROOT, Module, modules


@dataclass(frozen=True)
class Walked:
    """How much of a module its own tests walked."""

    module: Module
    branches: int
    missing_lines: tuple[int, ...]
    missing_branches: tuple[tuple[int, int], ...]
    failed: str = ""

    @property
    def whole(self) -> bool:
        """Whether nothing was left out."""
        return not (self.failed or self.missing_lines or self.missing_branches)

    @property
    def line(self) -> str:
        """Its line of the table."""
        branches = ", ".join(f"{start}→{end}" for start, end in self.missing_branches)
        left = f"lines {list(self.missing_lines)} branches {branches}"
        verdict = self.failed or ("all" if self.whole else left)
        return f"{self.module.part:9} {self.module.name:24} {self.branches:4}  {verdict}"


def run_tests(tests: tuple[Path, ...], own: list[Module], folder: Path) -> list[Walked]:
    """Run some test files alone, and look at the modules whose own they are."""
    data, report = folder / f"{tests[0].stem}.data", folder / f"{tests[0].stem}.json"
    include = ",".join(str(module.path) for module in own)
    coverage = [sys.executable, "-m", "coverage"]
    options = ["--branch", f"--data-file={data}", f"--include={include}"]
    quiet = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--no-header"]
    ran = _do([*coverage, "run", *options, *quiet, *map(str, tests)])
    if ran.returncode:
        return [Walked(module, 0, (), (), _last_line(ran.stdout)) for module in own]
    _do([*coverage, "json", "-q", f"--data-file={data}", f"-o{report}"]).check_returncode()
    files = {
        str(ROOT / name): seen for name, seen in json.loads(report.read_text())["files"].items()
    }
    return [_walked(module, files.get(str(module.path))) for module in own]


def _last_line(output: str) -> str:
    return (output.splitlines() or ["its tests did not start"])[-1]


def _do(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def _walked(module: Module, seen: dict[str, Any] | None) -> Walked:
    if seen is None:
        return Walked(module, 0, (), (), "its own tests do not import it")
    branches = seen["summary"]["num_branches"]
    missing = tuple((start, end) for start, end in seen["missing_branches"])
    return Walked(module, branches, tuple(seen["missing_lines"]), missing)


def main() -> int:
    """Run all, print the table; 1 if anything was left out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modules", nargs="*", help="only these, such as sealing or dispatcher")
    chosen = modules(tuple(parser.parse_args().modules))
    groups: dict[tuple[Path, ...], list[Module]] = {}
    for module in chosen:
        groups.setdefault(module.tests, []).append(module)
    whole = 0
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        for run in pool.map(lambda group: run_tests(*group, Path(folder)), groups.items()):
            for walked in run:
                whole += walked.whole
                print(walked.line, flush=True)
    print(f"{whole} of {len(chosen)} modules: every branch walked by their own tests")
    return whole != len(chosen)


if __name__ == "__main__":
    sys.exit(main())
