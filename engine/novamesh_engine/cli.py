"""The engine's commands: `novamesh engine bench` and `doctor`, and its part of `novamesh doctor`.

Rules: importing this starts no torch, because a mistyped command makes the root command import all
parts; each command imports the engine when it runs. Results go to stdout, talk to stderr.
"""

from __future__ import annotations

import dataclasses
import json as json_text
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import platformdirs
from cyclopts import App, Parameter, validators
from rich.console import Console
from rich.text import Text

from novamesh_engine.doctor import Check, Status, doctor_checks

__all__ = ["Check", "Status", "app", "doctor_checks"]

app = App(name="engine", help="The inference engine on this machine.")

Count = Annotated[int, Parameter(validator=validators.Number(gte=1))]
Json = Annotated[bool, Parameter(name="--json", negative="")]


@app.command
def bench(
    model: str = "nova-pico",
    *,
    prompt_tokens: Count = 128,
    decode_tokens: Annotated[int, Parameter(validator=validators.Number(gte=2))] = 64,
    requests: Count = 1,
    threads: Annotated[int, Parameter(validator=validators.Number(gte=0))] = 0,
    precision: Literal["int8", "exact"] = "int8",
    kv: Literal["bf16", "int8", "fp32"] = "bf16",
    device: str = "cpu",
    json: Json = False,
) -> None:
    """Measure how fast a model prefills and decodes here, and what memory would allow.

    Parameters
    ----------
    model
        A built-in model's name, or a model folder.
    prompt_tokens
        Tokens of each prompt.
    decode_tokens
        Tokens of each answer.
    requests
        Prompts that run at once.
    threads
        CPU threads, 0 = one for each physical core.
    precision
        What native kernels multiply packed weights with: activations of 8 bits, or float32.
    kv
        How the cache keeps keys and values.
    device
        What computes: cpu, cuda, or cuda:N.
    json
        Print one JSON object.
    """
    # Heavy (torch), and missing where only the client is installed.
    from novamesh_engine.benchmark import Load
    from novamesh_engine.config import EngineConfig
    from novamesh_engine.trial import examine

    running = max(requests, EngineConfig().max_running)
    config = EngineConfig(
        max_running=running, threads=threads, precision=precision, kv_dtype=kv,
        device=device, tuning=str(_kernels(os.environ)),
    )  # fmt: skip
    report = examine(model, config, Load(prompt_tokens, decode_tokens, requests))
    if json:
        sys.stdout.write(json_text.dumps(report.values()) + "\n")
    else:
        report.print(Console(highlight=False, soft_wrap=True))


@app.command
def doctor(*, json: Json = False) -> int:
    """Tell which kernels compute here and why, and what would be faster.

    The exit status is 1 if the engine cannot run.

    Parameters
    ----------
    json
        Print one JSON list.
    """
    checks = doctor_checks()
    if json:
        rows = [dataclasses.asdict(check) for check in checks]
        sys.stdout.write(json_text.dumps(rows, indent=2) + "\n")
    else:
        console = Console(highlight=False, soft_wrap=True)
        for check in checks:
            console.print(_line(check))
            if check.hint:
                console.print(Text.assemble(("hint:", "cyan"), f" {check.hint}"))
    return int(any(check.status is Status.FAIL for check in checks))


def _kernels(env: Mapping[str, str]) -> Path:
    """Where a node of this machine keeps what it measured of its kernels, too."""
    home = env.get("NOVAMESH_HOME")
    cache = platformdirs.user_cache_path("novamesh", appauthor=False)
    return (Path(os.path.expanduser(home)).absolute() / "cache" if home else cache) / "kernels"


_STYLES = {Status.OK: "green", Status.WARN: "yellow", Status.FAIL: "red"}


def _line(check: Check) -> Text:
    return Text.assemble((f"{check.status:>5}", _STYLES[check.status]),
                         f"  {check.name:<11}  {check.detail}")  # fmt: skip
