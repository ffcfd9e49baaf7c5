"""The engine's commands: `novamesh engine bench`, and its part of `novamesh doctor`.

Rules: importing this starts no torch, because a mistyped command makes the root command import all
parts; each command imports the engine when it runs. Results go to stdout, talk to stderr.
"""

from __future__ import annotations

import dataclasses
import json as json_text
import sys
from typing import Annotated

from cyclopts import App, Parameter, validators

from novamesh_engine.doctor import Check, Status, doctor_checks

__all__ = ["Check", "Status", "app", "doctor_checks"]

app = App(name="engine", help="The inference engine on this machine.")

Count = Annotated[int, Parameter(validator=validators.Number(gte=1))]


@app.command
def bench(
    model: str = "nova-pico",
    *,
    prompt_tokens: Count = 128,
    decode_tokens: Annotated[int, Parameter(validator=validators.Number(gte=2))] = 64,
    requests: Count = 1,
    threads: Annotated[int, Parameter(validator=validators.Number(gte=0))] = 0,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Measure how fast a model prefills and decodes here.

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
        CPU threads, 0 = as many as torch takes by itself.
    json
        Print one JSON object.
    """
    # Heavy (torch), and missing where only the client is installed.
    import torch

    from novamesh_engine.config import EngineConfig
    from novamesh_engine.engine import Engine
    from novamesh_engine.kernels import describe

    if threads:
        torch.set_num_threads(threads)
    config = EngineConfig(max_running=max(requests, EngineConfig().max_running))
    result = Engine.load(model, config).benchmark(prompt_tokens, decode_tokens, requests)
    values = {
        "model": model,
        **dataclasses.asdict(result.load),
        "threads": torch.get_num_threads(),
        "kernels": describe(config.device),
        "prefill_tokens_per_s": round(result.prefill_tokens_per_s, 1),
        "decode_tokens_per_s": round(result.decode_tokens_per_s, 1),
        "ttft_ms": round(result.ttft_ms, 2),
    }
    sys.stdout.write(json_text.dumps(values) + "\n" if json else _table(values))


def _table(values: dict[str, object]) -> str:
    width = max(map(len, values))
    return "".join(f"{name:<{width}}  {value}\n" for name, value in values.items())
