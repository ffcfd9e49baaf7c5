"""Our engine on a CPU at Phi-mini's full shape, beside the engines that people use today.

    python benchmarks/decode_cpu.py [--only PART,…] [--rounds N] [--quick] [--out FILE]

decode    single tokens, beside llama.cpp in IQ4_NL, with 1 thread and with 2
prefill   prompts of 512 and 128 tokens, beside llama.cpp
gemv      experts' matrices times one vector, beside a pass that only reads as many bytes
attend    one token's attention over 4,096 tokens in memory, beside a pass that only reads them
streams   eight answers together, beside one
bnb       single tokens, beside transformers + bitsandbytes as shipped
memory    what the loaded process holds, and how long it loads from the page cache

All weights are random and all shapes true; models and peers are made below build/ where they are
lacking. Peers are processes that keep their models loaded and take turns with ours; who begins
alternates. In each round of decoding a pass that only reads as many bytes of our weights is timed
beside the rest. Verdicts are on medians over rounds of ratios within a round. Exits 1 when a gate
is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from cpu.bnb import bnb_player, whole
from cpu.figures import Figure, save, table
from cpu.llama import llama_player
from cpu.peers import PEERS
from cpu.random_profile import write_random_profile
from cpu.turns import Player, Reply, start_module

LOGS: Final = PEERS / "logs"
ROUNDS: Final = 10
TOKENS: Final = 48
DEPTH: Final = 16
BNB_DEPTH: Final = 128
STREAMS: Final = 8
LOADS: Final = 3
FAST_GB_S: Final = 60.0  # two threads' reads above this: memory keeps up with more than one core
FAST_STRETCH: Final = 1.6


@dataclass
class Stage:
    """Who plays: a process starts when it is first asked for; all of them end together."""

    options: argparse.Namespace
    doors: contextlib.ExitStack
    facts: dict[str, Any]
    players: dict[str, Player] = field(default_factory=dict)

    @property
    def threads(self) -> int:
        """Of every part that has no number of its own."""
        return int(self.options.threads)

    @property
    def tokens(self) -> int:
        """Single tokens in a turn."""
        return int(self.options.tokens)

    def ours(self, threads: int) -> Player:
        """Our engine, loaded with so many threads."""
        return self._player(f"ours, {_count(threads)}", partial(start_ours, threads))

    def llama(self) -> Player:
        """llama.cpp; it is told the number of threads with each order."""
        return self._player("llama.cpp", partial(llama_player, self.options.jobs))

    def bnb(self) -> Player:
        """transformers + bitsandbytes, with 1 layer and with 4."""
        return self._player("bitsandbytes", partial(bnb_player, self.threads))

    def _player(self, name: str, start: Callable[[Path], Player]) -> Player:
        if name not in self.players:
            log = LOGS / f"{name.replace(', ', '-').replace(' ', '-')}.log"
            self.players[name] = self.doors.enter_context(start(log))
            self.facts[name] = self.players[name].ready
        return self.players[name]

    def rounds(self) -> Iterator[bool]:
        """One for each round: whether we begin."""
        for number in range(self.options.rounds):
            yield number % 2 == 0


def start_ours(threads: int, log: Path) -> Player:
    """A process of ours with the model loaded."""
    return start_module("cpu.ours", log, str(write_random_profile()), str(threads))


def decode(stage: Stage, threads: int, least: float, stretch: float) -> list[Figure]:
    """Single tokens beside llama.cpp, and beside a pass that only reads what a token needs."""
    ours, llama, tokens = stage.ours(threads), stage.llama(), stage.tokens
    name = f"decode, {_count(threads)}"
    ratio = Figure(f"{name}, vs llama.cpp", "x", least=least, stretch=stretch)
    share = Figure(f"{name}, vs read-only pass", "%")
    needed = int(ours.ready["step_bytes"])
    reads_gb_s = []
    for first in stage.rounds():
        read = speed(ours.ask("read", needed, tokens // 4))
        mine, other = in_turn(
            first,
            lambda: speed(ours.ask("decode", tokens, DEPTH, 1)),
            lambda: speed(llama.ask("decode", tokens, threads, DEPTH)),
        )
        ratio.add(mine / other, ours=mine, llama=other)
        share.add(100 * mine / read, ours=mine, read=read)
        reads_gb_s.append(read * needed / 1e9)
    stage.facts[f"{name}: GB/s of the read-only pass"] = reads_gb_s
    if threads > 1 and statistics.median(reads_gb_s) > FAST_GB_S:
        ratio.stretch = FAST_STRETCH
    return [ratio, share]


def prefill(stage: Stage, prompt: int, least: float | None, stretch: float | None) -> list[Figure]:
    """A prompt until its first token, beside llama.cpp."""
    ours, llama = stage.ours(stage.threads), stage.llama()
    ratio = Figure(f"prefill {prompt} tokens, vs llama.cpp", "x", least=least, stretch=stretch)
    for first in stage.rounds():
        mine, other = in_turn(
            first,
            lambda: speed(ours.ask("prefill", prompt)),
            lambda: speed(llama.ask("prefill", prompt, stage.threads)),
        )
        ratio.add(mine / other, ours=mine, llama=other)
    return [ratio]


def gemv(stage: Stage, threads: int, least: float, stretch: float) -> list[Figure]:
    """Experts' matrices times one vector, beside reads of the same bytes."""
    ours = stage.ours(threads)
    name = f"expert GEMV, {_count(threads)}, vs read-only pass"
    share = Figure(name, "%", least=least, stretch=stretch)
    for _ in stage.rounds():
        reply = ours.ask("gemv", stage.options.tokens)
        product, read = (reply["bytes"] / reply[key] / 1e9 for key in ("gemv_s", "read_s"))
        share.add(100 * product / read, gemv_gb_s=product, read_gb_s=read)
    return [share]


def attend(stage: Stage, threads: int, bits: int) -> list[Figure]:
    """Attention over pages that no cache holds, beside reads of the same bytes."""
    ours = stage.ours(threads)
    kind = {16: "bf16", 8: "int8"}[bits]
    share = Figure(f"attention, {kind}, {_count(threads)}, vs read-only pass", "%")
    for _ in stage.rounds():
        reply = ours.ask("attend", bits, 1)
        attended, read = (reply["bytes"] / reply[key] / 1e9 for key in ("attend_s", "read_s"))
        share.add(100 * attended / read, attend_gb_s=attended, read_gb_s=read)
    return [share]


def streams(stage: Stage) -> list[Figure]:
    """Eight answers together beside one: all tokens a second."""
    ours, tokens = stage.ours(stage.threads), stage.tokens
    ratio = Figure(f"{STREAMS} streams together vs one", "x", least=2.2, stretch=3)
    different = []

    def together() -> float:
        reply = ours.ask("decode", tokens // 2, DEPTH, STREAMS)
        different.append(reply["different"])
        return speed(reply)

    for first in stage.rounds():
        all_, one = in_turn(first, together, lambda: speed(ours.ask("decode", tokens, DEPTH, 1)))
        ratio.add(all_ / one, together=all_, one=one)
    stage.facts[f"different tokens a step of {STREAMS} streams"] = statistics.mean(different)
    return [ratio]


def bnb(stage: Stage) -> list[Figure]:
    """Single tokens beside transformers + bitsandbytes, reckoned to full depth."""
    ours, theirs, tokens = stage.ours(stage.threads), stage.bnb(), stage.tokens // 2
    ratio = Figure("decode vs transformers + bitsandbytes", "x", least=4.5, stretch=5)

    def reckoned() -> float:
        one, four = (speed(theirs.ask("decode", layers, tokens, BNB_DEPTH)) for layers in (1, 4))
        return 1 / whole(1 / one, 1 / four)

    for first in stage.rounds():
        mine, other = in_turn(
            first, lambda: speed(ours.ask("decode", tokens, BNB_DEPTH, 1)), reckoned
        )
        ratio.add(mine / other, ours=mine, bnb=other)
    return [ratio]


def memory(stage: Stage) -> list[Figure]:
    """Fresh processes, one after the other; the first one fills the page cache and is not told."""
    held = Figure("resident memory", "GB", most=4.8, stretch=4.5)
    load = Figure("load from page cache", "s", most=3.0)
    for number in range(LOADS + 1):
        with start_ours(stage.threads, LOGS / f"load-{number}.log") as player:
            player.ask("prefill", 512)
            player.ask("decode", 8, DEPTH, STREAMS)
            if number:
                held.add(player.ask("memory")["resident_bytes"] / 1e9)
                load.add(player.ready["load_s"])
    return [held, load]


PARTS: Final[dict[str, tuple[Callable[[Stage], list[Figure]], ...]]] = {
    "decode": (
        partial(decode, threads=1, least=1.30, stretch=1.5),
        partial(decode, threads=2, least=1.20, stretch=1.3),
    ),
    "prefill": (
        partial(prefill, prompt=512, least=2.2, stretch=3.1),
        partial(prefill, prompt=128, least=None, stretch=None),
    ),
    "gemv": (
        partial(gemv, threads=1, least=80, stretch=90),
        partial(gemv, threads=2, least=88, stretch=97),
    ),
    "attend": tuple(
        partial(attend, threads=threads, bits=bits) for bits in (16, 8) for threads in (1, 2)
    ),
    "streams": (streams,),
    "bnb": (bnb,),
    "memory": (memory,),
}


def in_turn(
    first: bool, ours: Callable[[], float], theirs: Callable[[], float]
) -> tuple[float, float]:
    """What both reach, ours first in the answer whoever begins."""
    if first:
        mine = ours()
        return mine, theirs()
    other = theirs()
    return ours(), other


def speed(reply: Reply) -> float:
    """What a turn did, a second."""
    return float(reply["tokens"]) / float(reply["seconds"])


def _count(threads: int) -> str:
    return "1 thread" if threads == 1 else f"{threads} threads"


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--tokens", type=int, default=TOKENS, help="single tokens in a turn")
    parser.add_argument(
        "--threads", type=int, default=2, help="of parts without a number of theirs"
    )
    parser.add_argument("--jobs", type=int, default=2, help="compilers at once, for llama.cpp")
    parser.add_argument("--quick", action="store_true", help="only whether it works")
    parser.add_argument("--out", type=Path, help="the file, instead of one in benchmarks/results")
    options = parser.parse_args()
    if unknown := set(options.only.split(",")) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    if options.quick:
        options.rounds, options.tokens = 2, 8
    return options


def main() -> int:
    """Play the parts, print the table, write the file."""
    options = _parse()
    facts: dict[str, Any] = {"rounds": options.rounds, "tokens a turn": options.tokens}
    figures: list[Figure] = []
    for name in options.only.split(","):
        with contextlib.ExitStack() as doors:  # what one part holds must not crowd the next
            stage = Stage(options, doors, facts)
            for part in PARTS[name]:
                for found in part(stage):
                    figures.append(found)
                    print("  ".join(filter(None, found.cells())), file=sys.stderr, flush=True)
    print(table(figures))
    print(f"\nwritten to {save('decode_cpu', figures, facts, options.out)}")
    return int(any(figure.met is False for figure in figures))


if __name__ == "__main__":
    sys.exit(main())
