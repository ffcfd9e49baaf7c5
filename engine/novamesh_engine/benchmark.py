"""How fast an engine is on this machine: measured, by running it.

Rules: the engine must be idle and is idle again afterwards; prompts are fixed numbers, not text.
Figures are throughput over all requests together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Protocol

from novamesh_engine.errors import RequestError
from novamesh_engine.request import Request, SamplingParams, StepOutput
from novamesh_proto.errors import Code

TOKENS_MAX: Final = 1 << 16
WARM_TOKENS: Final = 16


@dataclass(frozen=True, slots=True)
class Load:
    """What to measure with: tokens of each prompt and answer, and how many run at once.

    Raises: RequestError (bad_request) for a count out of range.
    """

    prompt_tokens: int = 128
    decode_tokens: int = 64
    requests: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.prompt_tokens <= TOKENS_MAX or not 2 <= self.decode_tokens <= TOKENS_MAX:
            message = f"a benchmark of {self.prompt_tokens} and {self.decode_tokens} tokens"
            raise RequestError(message, f"take 1 and 2 at least, {TOKENS_MAX} at most")
        if self.requests < 1:
            raise RequestError(f"a benchmark of {self.requests} requests", "take at least 1")


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Speeds in tokens a second, times in milliseconds; and what was run.

    `step_ms` holds the time of each step after the one with which every answer has begun.
    """

    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    ttft_ms: float
    step_ms: tuple[float, ...]
    load: Load


class Subject(Protocol):
    """The part of an engine that a benchmark drives."""

    @property
    def has_work(self) -> bool:
        """Whether it is busy."""
        ...

    def submit(self, request: Request) -> None:
        """Queue a request."""
        ...

    def step(self) -> list[StepOutput]:
        """Run one batch."""
        ...

    def abort(self, request_id: str) -> bool:
        """End a request."""
        ...


def measure(
    subject: Subject,
    clock: Callable[[], int],
    vocab_size: int,
    load: Load,
    compiles: bool = False,
) -> Benchmark:
    """Prefill and decode the load after a short warm-up; `clock` gives nanoseconds.

    Where a subject `compiles` what it meets first, all of the load is met before it is measured.

    Raises: RequestError (conflict) if the engine has work.
    """
    if subject.has_work:
        raise RequestError("the engine is at work", "measure while it is idle", Code.CONFLICT)
    try:
        warm = load if compiles else Load(min(WARM_TOKENS, load.prompt_tokens), 2, 1)
        _run(subject, clock, vocab_size, warm)
        return _run(subject, clock, vocab_size, load)
    finally:
        for index in range(load.requests):
            subject.abort(_name(index))
        while subject.has_work:
            subject.step()


def _run(subject: Subject, clock: Callable[[], int], vocab_size: int, load: Load) -> Benchmark:
    sampling = SamplingParams(max_tokens=load.decode_tokens, ignore_eos=True)
    begun = clock()
    for index in range(load.requests):
        tokens = tuple((index + at * 7919) % vocab_size for at in range(load.prompt_tokens))
        subject.submit(Request(_name(index), tokens, sampling))
    speaking: set[str] = set()
    while len(speaking) < load.requests:
        speaking.update(output.request_id for output in subject.step())
    decoded, ends = 0, [clock()]
    while subject.has_work:
        decoded += sum(len(output.token_ids) for output in subject.step())
        ends.append(clock())
    return Benchmark(
        prefill_tokens_per_s=_rate(load.prompt_tokens * load.requests, ends[0] - begun),
        decode_tokens_per_s=_rate(decoded, ends[-1] - ends[0]),
        ttft_ms=(ends[0] - begun) / 1e6,
        step_ms=tuple((end - before) / 1e6 for before, end in pairwise(ends)),
        load=load,
    )


def _rate(tokens: int, elapsed_ns: int) -> float:
    return tokens * 1e9 / max(elapsed_ns, 1)


def _name(index: int) -> str:
    return f"benchmark-{index}"
