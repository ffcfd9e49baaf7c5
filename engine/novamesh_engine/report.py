"""A benchmark as people and programs read it: figures, the plan behind them, and a small plot.

Rules: no torch; every figure says its unit; the plot is for terminals, a pipe gets words only.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Final

from rich.console import Console
from rich.text import Text

from novamesh_engine.benchmark import Benchmark

PLOT_COLUMNS: Final = 60
PLOT_ROWS: Final = 5
_EIGHTHS: Final = " ▁▂▃▄▅▆▇█"


@dataclass(frozen=True, slots=True)
class Plan:
    """What was chosen to compute with, and why nothing faster was: empty where the fastest is.

    `placement` is the line of `weights.place`, empty where all weights are mapped from the file.
    """

    kernels: str
    precision: str
    threads: int
    kv: str
    why: str = ""
    placement: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """One measured model. Sizes in bytes; `step_bytes` is what one decode step must read."""

    model: str
    plan: Plan
    load_s: float
    resident_bytes: int
    read_bytes_per_s: int
    step_bytes: int
    result: Benchmark

    @property
    def roofline_tokens_per_s(self) -> float:
        """What decoding would reach if it did nothing but read."""
        steps_per_s = self.read_bytes_per_s / max(1, self.step_bytes)
        return steps_per_s * self.result.load.requests

    @property
    def roofline_share(self) -> float:
        """Decoding's speed as a share of that."""
        return self.result.decode_tokens_per_s / max(1e-9, self.roofline_tokens_per_s)

    def values(self) -> dict[str, object]:
        """Everything, for programs."""
        result = self.result
        return {
            "model": self.model,
            **asdict(self.plan),
            **asdict(result.load),
            "prefill_tokens_per_s": round(result.prefill_tokens_per_s, 1),
            "decode_tokens_per_s": round(result.decode_tokens_per_s, 1),
            "ttft_ms": round(result.ttft_ms, 2),
            "step_ms": [round(ms, 3) for ms in result.step_ms],
            "step_bytes": self.step_bytes,
            "read_bytes_per_s": self.read_bytes_per_s,
            "roofline_tokens_per_s": round(self.roofline_tokens_per_s, 1),
            "roofline_share": round(self.roofline_share, 4),
            "load_s": round(self.load_s, 3),
            "resident_bytes": self.resident_bytes,
        }

    def print(self, console: Console) -> None:
        """For people."""
        for name, value in self._lines():
            console.print(Text(f"{name:<8}  {value}"))
        if console.is_terminal:
            console.print()
            for line in plot(self.result.step_ms, PLOT_COLUMNS, PLOT_ROWS):
                console.print(Text(line, style="cyan"))

    def _lines(self) -> Iterator[tuple[str, str]]:
        plan, result, load = self.plan, self.result, self.result.load
        side_by_side = f", {load.requests} at once" if load.requests > 1 else ""
        yield "model", self.model
        yield "kernels", plan.kernels
        if plan.why:
            yield "why", plan.why
        if plan.placement:
            yield "weights", plan.placement
        yield "plan", f"{plan.precision}, {_plural(plan.threads, 'thread')}, KV {plan.kv}"
        yield (
            "prefill",
            f"{result.prefill_tokens_per_s:.1f} tokens/s, first token after {result.ttft_ms:.0f} ms"
            f" ({load.prompt_tokens} tokens{side_by_side})",
        )
        yield "decode", f"{result.decode_tokens_per_s:.1f} tokens/s{side_by_side}"
        yield (
            "step",
            f"{statistics.median(result.step_ms):.2f} ms, the best {min(result.step_ms):.2f},"
            f" the worst {max(result.step_ms):.2f}",
        )
        yield (
            "roofline",
            f"{self.roofline_share:.0%} of the {self.roofline_tokens_per_s:.1f} tokens/s that"
            f" memory allows: {_size(self.step_bytes)} a step at"
            f" {_size(self.read_bytes_per_s)}/s",
        )
        memory = _size(self.resident_bytes) if self.resident_bytes else "unknown"
        yield "memory", f"{memory} resident, loaded in {self.load_s:.2f} s"


def plot(step_ms: Sequence[float], columns: int, rows: int) -> list[str]:
    """Bars from zero to the slowest step, a column for each few steps; the axis is at the left."""
    groups = min(columns, len(step_ms))
    edges = [len(step_ms) * at // groups for at in range(groups + 1)]
    bars = [statistics.median(step_ms[begin:end]) for begin, end in pairwise(edges)]
    top = max(max(bars), 1e-9)
    lines = []
    for row in reversed(range(rows)):
        filled = [min(8, max(0, round(bar / top * rows * 8) - row * 8)) for bar in bars]
        label = f"{top:8.2f} ms" if row == rows - 1 else ""
        lines.append(f"{label:>11} ┤{''.join(_EIGHTHS[eighths] for eighths in filled)}")
    lines.append(f"{'0':>11} ┼{'─' * groups}")
    last = f"token {len(step_ms) + 1}"
    lines.append(f"{'':>11}  token 2{last:>{max(len(last) + 1, groups - 7)}}")
    return lines


def _size(count: float) -> str:
    """Decimal units, as bandwidths have them."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def _plural(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"
