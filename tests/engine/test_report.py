"""What a benchmark says to people and to programs, from figures that are known."""

from __future__ import annotations

import io
import json
from dataclasses import replace

from rich.console import Console

from novamesh_engine.benchmark import Benchmark, Load
from novamesh_engine.report import Plan, Report, plot

RESULT = Benchmark(1000.0, 40.0, 128.0, (25.0, 24.0, 50.0), Load(128, 4, 2))
REPORT = Report(
    "a-model", Plan("native-avx2-int8", "int8", 2, "bf16"), 1.5, 5_000_000_000, 30_000_000_000,
    1_200_000_000, RESULT,
)  # fmt: skip


def printed(terminal: bool, report: Report = REPORT) -> str:
    out = io.StringIO()
    report.print(Console(file=out, force_terminal=terminal, color_system=None, soft_wrap=True))
    return out.getvalue()


def test_the_roofline_is_bytes_over_bandwidth_for_all_answers_together() -> None:
    assert REPORT.roofline_tokens_per_s == 50.0  # 25 steps a second, two tokens each
    assert REPORT.roofline_share == 0.8


def test_programs_get_everything() -> None:
    values = json.loads(json.dumps(REPORT.values()))
    assert values["kernels"] == "native-avx2-int8"
    assert (values["precision"], values["threads"], values["kv"]) == ("int8", 2, "bf16")
    assert (values["decode_tokens_per_s"], values["requests"]) == (40.0, 2)
    assert values["step_ms"] == [25.0, 24.0, 50.0]
    assert (values["roofline_share"], values["resident_bytes"]) == (0.8, 5_000_000_000)


def test_people_get_sentences_with_units() -> None:
    lines = dict(line.split(None, 1) for line in printed(terminal=False).splitlines())
    assert lines["plan"] == "int8, 2 threads, KV bf16"
    assert lines["decode"] == "40.0 tokens/s, 2 at once"
    assert lines["step"] == "25.00 ms, the best 24.00, the worst 50.00"
    assert lines["roofline"].startswith(
        "80% of the 50.0 tokens/s that memory allows: 1.20 GB a step"
    )
    assert lines["memory"] == "5.00 GB resident, loaded in 1.50 s"


def test_a_slow_path_says_why_it_was_taken() -> None:
    assert "why" not in printed(terminal=False)
    slow = replace(REPORT, plan=Plan("torch", "exact", 2, "bf16", "not built: no compiler"))
    assert "kernels   torch\nwhy       not built: no compiler\n" in printed(False, slow)
    assert (REPORT.values()["why"], slow.values()["why"]) == ("", "not built: no compiler")


def test_a_terminal_gets_a_plot_too() -> None:
    assert "┼" in printed(terminal=True)
    assert "┼" not in printed(terminal=False)


def test_bars_are_as_high_as_their_steps() -> None:
    *bars, axis, last = plot([1.0, 2.0, 4.0], columns=60, rows=2)
    assert [line[-3:] for line in bars] == ["  █", "▄██"]
    assert axis.endswith("┼───")
    assert last.endswith("token 4")


def test_many_steps_share_columns() -> None:
    lines = plot([float(ms) for ms in range(1, 101)], columns=10, rows=1)
    assert len(lines[0].split("┤")[1]) == 10
