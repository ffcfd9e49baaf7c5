"""What was measured, each figure beside its gate, as a table and as JSON.

A figure is made of one value a round; its verdict is on their median, because a neighbour's noise
reaches single rounds. Ratios are taken within a round, so that a machine that changes its pace
between rounds changes no ratio.
"""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import psutil

RESULTS: Final = Path(__file__).parents[1] / "results"
_PACKAGES: Final = ("novamesh", "torch", "triton", "numpy", "transformers", "bitsandbytes")


@dataclass
class Figure:
    """One row: `values` a round each; `least` or `most` is the gate, `stretch` where we would be.

    `sides` holds what each side reached, in the unit of the sides, for those who want to compare.
    """

    name: str
    unit: str
    values: list[float] = field(default_factory=list)
    least: float | None = None
    most: float | None = None
    stretch: float | None = None
    sides: dict[str, list[float]] = field(default_factory=dict)

    def add(self, value: float, **sides: float) -> None:
        """One round."""
        self.values.append(value)
        for name, reached in sides.items():
            self.sides.setdefault(name, []).append(reached)

    @property
    def median(self) -> float:
        """The middle of all rounds."""
        return statistics.median(self.values)

    @property
    def met(self) -> bool | None:
        """Whether the median is on the right side of its gate; None where there is none."""
        if self.least is not None:
            return self.median >= self.least
        return None if self.most is None else self.median <= self.most

    @property
    def stretched(self) -> bool:
        """Whether it is where we would like to be."""
        if self.stretch is None:
            return False
        return self.median <= self.stretch if self.most is not None else self.median >= self.stretch

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "unit": self.unit,
            "median": self.median,
            "best": min(self.values) if self.most is not None else max(self.values),
            "gate": {"least": self.least, "most": self.most, "stretch": self.stretch},
            "met": self.met,
            "stretch_met": self.stretched,
            "values": self.values,
            "sides": {
                name: {
                    "median": statistics.median(reached),
                    "best": max(reached),
                    "values": reached,
                }
                for name, reached in self.sides.items()
            },
        }

    def cells(self) -> tuple[str, ...]:
        """For a table."""
        sides = ", ".join(
            f"{name} {statistics.median(reached):.1f} (best {max(reached):.1f})"
            for name, reached in self.sides.items()
        )
        verdict = {None: "", True: "stretch" if self.stretched else "pass", False: "MISS"}
        return (
            self.name,
            f"{self.median:.2f} {self.unit}",
            f"{min(self.values):.2f} to {max(self.values):.2f}",
            _bar(self.least, self.most),
            "" if self.stretch is None else f"{self.stretch:g}",
            verdict[self.met],
            sides,
        )


def _bar(least: float | None, most: float | None) -> str:
    if least is not None:
        return f"≥ {least:g}"
    return "" if most is None else f"≤ {most:g}"


def table(figures: Iterable[Figure]) -> str:
    """Columns of text."""
    header = ("figure", "median", "rounds", "gate", "stretch", "", "sides")
    rows = [header, *(figure.cells() for figure in figures)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def machine() -> dict[str, Any]:
    """What it ran on, and what else ran there."""
    name = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            name = line.partition(":")[2].strip()
            break
    return {
        "cpu": name,
        "cores": psutil.cpu_count(logical=False),
        "threads": psutil.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "load_average": os.getloadavg(),
        "python": platform.python_version(),
        "system": platform.platform(),
        **{package: _version(package) for package in _PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def save(
    name: str, figures: Sequence[Figure], facts: dict[str, Any], place: Path | None, card: str = ""
) -> Path:
    """Write everything to benchmarks/results, a file for each day and card, or CPU without one."""
    here = machine()
    now = datetime.now(UTC)
    slug = re.sub(r"[^a-z0-9]+", "-", str(card or here["cpu"]).lower()).strip("-")[:40]
    path = place or RESULTS / f"{name}-{now:%Y-%m-%d}-{slug}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "benchmark": name,
        "at": f"{now:%Y-%m-%dT%H:%M:%SZ}",
        "commit": _commit(),
        "machine": here,
        **facts,
        "figures": [figure.document() for figure in figures],
    }
    path.write_text(json.dumps(document, indent=1) + "\n")
    return path


def _commit() -> str:
    command = ["git", "-C", str(RESULTS.parent), "describe", "--always", "--dirty", "--abbrev=12"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip()
