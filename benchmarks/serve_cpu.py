"""What a pool costs an answer: `novamesh run` beside the bare engine, at Phi-mini's full shape.

    python benchmarks/serve_cpu.py [--rounds N] [--tokens N] [--threads N] [--out FILE]

A coordinator and a node are real processes on loopback, started through the public command line,
and so is the client of each round. The speed is the one that the client witnesses, from its first
token to its last. The bare engine is a process with the same model, loaded with as many threads,
that decodes as many tokens after as long a prompt; they take turns, who begins alternates. Exits 1
when the median over rounds of client over bare engine is below the gate.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from cpu.figures import Figure, save, table
from cpu.peers import PEERS
from cpu.random_profile import NAME, write_random_profile
from cpu.turns import Player, start_module

from novamesh.cli.daemons import Daemons

ANYWHERE: Final = "127.0.0.1:0"
PROMPT: Final = "the rain in spain stays mainly on the plain, and " * 4
LEAST: Final = 0.95


async def measure(options: argparse.Namespace, bare: Player) -> tuple[Figure, dict[str, Any]]:
    """Start the pool, and let both sides decode in turn."""
    ratio = Figure("novamesh run vs bare engine", "x", least=LEAST)
    facts: dict[str, Any] = {
        "bare engine": bare.ready,
        "tokens": options.tokens,
        "first token, s": [],
    }
    with tempfile.TemporaryDirectory(prefix="serve-") as folder:
        async with Daemons(Path(folder)) as daemons:
            await _start(daemons, options.threads)
            depth = (await _run(daemons, 4))["prompt_tokens"]
            for number in range(options.rounds):
                answer = await _run(daemons, options.tokens) if number % 2 == 0 else None
                reply = bare.ask("decode", options.tokens, depth, 1)
                answer = answer or await _run(daemons, options.tokens)
                engine, client = reply["tokens"] / reply["seconds"], answer["tokens_per_s"]
                ratio.add(client / engine, client=client, engine=engine)
                facts["first token, s"].append(answer["ttft_s"])
    return ratio, facts


async def _start(daemons: Daemons, threads: int) -> None:
    """A coordinator, a node that serves the model, and a client that has joined."""
    await daemons.command("coordinator", "coordinator", "init", "--name", "serve")
    await daemons.start(
        "coordinator", "coordinator", "serve", "--listen", ANYWHERE, "--http", ANYWHERE
    )
    code = (await daemons.command("coordinator", "coordinator", "invite")).strip()
    await daemons.start(
        "node", "node", "start", "--join", code, "--model", str(write_random_profile()),
        "--threads", str(threads),
    )  # fmt: skip
    await daemons.command("client", "pool", "join", code)


async def _run(daemons: Daemons, tokens: int) -> dict[str, Any]:
    """One answer through the pool, as its client tells it."""
    command = ("run", NAME, PROMPT, "--max-tokens", str(tokens), "--json")
    answer: dict[str, Any] = json.loads(await daemons.command("client", *command))
    return answer


def main() -> int:
    """Play, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="the file, instead of one in benchmarks/results")
    options = parser.parse_args()
    log = PEERS / "logs" / "bare.log"
    model = str(write_random_profile())
    with contextlib.closing(start_module("cpu.ours", log, model, str(options.threads))) as bare:
        ratio, facts = asyncio.run(measure(options, bare))
    print(table([ratio]))
    print(f"\nwritten to {save('serve_cpu', [ratio], facts, options.out)}")
    return int(not ratio.met)


if __name__ == "__main__":
    sys.exit(main())
