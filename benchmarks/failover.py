"""How soon an answer goes on when the node at work is killed, or its coordinator falls silent.

    PYTHONPATH=tests python benchmarks/failover.py [killed|silent] [--rounds N] [--json]

`killed`, from the known loss to a new token: a pool of real processes on loopback: a coordinator,
two nodes with the built-in model, a client. In each round the node that answers is killed with
SIGKILL once two pieces are here, and started again at once: when it attaches without the attempt,
the coordinator knows that it is lost and says so. The clock runs from the moment the client hears
that until the next piece with a token is delivered: match, seal, submit, prefill of prompt and
received tokens, first token. How long it takes until the loss is known is told beside it.

`silent`, from the last token of the relayed answer to the next one: everything between the client
and the coordinator is swallowed, as when a machine loses its power; the node at work is reached by
no other way, so the answer goes on at another one that is asked directly.

Each answer must equal the uninterrupted one. Exits 1 when the median of `killed`, or the longest
pause of `silent`, is above its bar.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from novamesh import Client
from novamesh_proto.identity import format_node_id
from support import silent_pool
from support.outage_pool import MODEL
from support.processes import RealPool
from support.silent_pool import SilentPool

BAR_S: Final = 1.0
SILENT_BAR_S: Final = 10.0
PROMPT: Final = "Write a long story about a café, an owl and 12 apples."
ASKED: Final[dict[str, Any]] = {
    "max_tokens": 400, "temperature": 0.9, "seed": 11, "ignore_eos": True,
}  # fmt: skip


class Ear(logging.Handler):
    """Hears from the SDK's own logger when it knows of a loss."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.heard_s: list[float] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Note the time."""
        self.heard_s.append(time.monotonic())


async def measure(pool: RealPool, rounds: int) -> list[dict[str, float]]:
    """Seconds of each round."""
    ear, logger = Ear(), logging.getLogger("novamesh.session")
    logger.addHandler(ear)
    logger.setLevel(logging.INFO)
    found = []
    async with Client(home=pool.home("client")) as client:
        whole = await client.complete("nova-pico", PROMPT, **ASKED)
        for _ in range(rounds):
            ear.heard_s.clear()
            found.append(await _round(pool, client, ear, whole.text))
            pool.await_nodes(2)
    return found


async def _round(pool: RealPool, client: Client, ear: Ear, whole: str) -> dict[str, float]:
    run = client.run("nova-pico", PROMPT, **ASKED)
    text, pieces, killed_s, resumed_s = "", 0, 0.0, 0.0
    restart: asyncio.Task[Any] | None = None
    async for piece in run:
        text, pieces = text + str(piece), pieces + 1
        if ear.heard_s and not resumed_s and piece.token_ids:
            resumed_s = time.monotonic()
        if pieces == 2:
            (job,) = await client.jobs(1)
            node = format_node_id(job.node)
            name = next(n for n, d in pool.daemons.items() if d.ready.endswith(node))
            pool.daemons[name].kill()
            killed_s = time.monotonic()
            restart = asyncio.create_task(asyncio.to_thread(pool.start_node, name))
    if restart is not None:
        await restart
    done = await run.completion()
    if text != whole or len(done.parts) < 2:
        raise SystemExit(f"{len(done.parts)} parts, the text is {'' if text == whole else 'not '}"
                         "that of the uninterrupted answer")  # fmt: skip
    return {
        "until_known_s": ear.heard_s[0] - killed_s,
        "known_to_token_s": resumed_s - ear.heard_s[0],
        "tokens_before": float(done.parts[0].end),
    }


async def fall_silent(pool: SilentPool, rounds: int) -> list[dict[str, float]]:
    """Seconds of each round."""
    found = []
    async with pool.client() as client:
        whole = await client.complete(MODEL, silent_pool.PROMPT, **silent_pool.ASKED)
    for _ in range(rounds):
        async with pool.client() as client:
            broken, pause_s = await pool.lose_coordinator(client)
        pool.proxy.thaw()
        if broken.text != whole.text or not broken.donated:
            raise SystemExit("the answer is another one, or its coordinator did not fall silent")
        found.append({"pause_s": pause_s})
    return found


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", default="killed", choices=("killed", "silent"))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    judge = judge_silent if chosen.what == "silent" else judge_killed
    with tempfile.TemporaryDirectory(prefix="failover-") as folder:
        return judge(Path(folder), chosen.rounds, chosen.json)


def judge_silent(folder: Path, rounds: int, as_json: bool) -> int:
    """Print the pauses; 1 where one is too long."""
    with SilentPool(folder) as pool:
        found = asyncio.run(fall_silent(pool, rounds))
    pauses = sorted(one["pause_s"] for one in found)
    if as_json:
        print(json.dumps({"rounds": found, "longest_s": pauses[-1]}, indent=1))
    else:
        print(f"silence to new token  median {statistics.median(pauses):.1f} s")
        print(f"least and most        {pauses[0]:.1f} and {pauses[-1]:.1f} s of {rounds} rounds")
    return int(pauses[-1] > SILENT_BAR_S)


def judge_killed(folder: Path, rounds: int, as_json: bool) -> int:
    """Print the times; 1 where the median is too long."""
    with RealPool(folder) as pool:
        pool.join()
        pool.revive("ada", "bob")
        found = asyncio.run(measure(pool, rounds))
    times = sorted(one["known_to_token_s"] for one in found)
    known = sorted(one["until_known_s"] for one in found)
    median = statistics.median(times)
    if as_json:
        print(json.dumps({"rounds": found, "median_s": median}, indent=1))
    else:
        least, most = times[0] * 1000, times[-1] * 1000
        print(f"known loss to new token  median {median * 1000:.0f} ms")
        print(f"least and most           {least:.0f} and {most:.0f} ms of {len(times)} rounds")
        print(f"until the loss is known  median {statistics.median(known):.1f} s")
    return int(median > BAR_S)


if __name__ == "__main__":
    sys.exit(main())
