"""An in-memory engine with the real one's interface: it answers by counting, one token a step.

Token n of an answer is `first + n` by absolute completion position, so a continued answer equals
the uninterrupted one; `script` changes what a step does: fail, end early, or hold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from novamesh_engine.errors import MemoryShortError, QueueFullError, RequestError
from novamesh_engine.request import FinishReason, Request, StepOutput, Timing, TokenLogprob
from novamesh_proto.errors import Code

VOCAB = 1000
FIRST_TOKEN = 100
CONTEXT = 512


class FakeTokenizer:
    """One token a character; a conversation is its contents, each behind a mark."""

    eos_ids = (0,)

    def encode(self, text: str, special: bool = True) -> tuple[int, ...]:
        del special
        return tuple(ord(character) % VOCAB for character in text)

    def encode_chat(
        self, messages: Sequence[Mapping[str, str]], generate: bool = True
    ) -> tuple[int, ...]:
        del generate
        return tuple(i for m in messages for i in (1, *self.encode(m["content"])))

    def token_bytes(self, token_id: int) -> bytes:
        return f"<{token_id}>".encode()


@dataclass(frozen=True)
class FakeStats:
    running: int
    prefill_tokens: int


@dataclass
class _Live:
    request: Request
    position: int


@dataclass
class FakeEngine:
    """`hook` runs at the start of each step, in the thread that owns the engine."""

    max_waiting: int = 64
    hook: Callable[[], None] = lambda: None
    short_at: int = 0  # the step in which memory runs out for the newest request
    steps: int = 0
    corrupt: bool = False
    submitted: list[Request] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    _live: dict[str, _Live] = field(default_factory=dict)
    _ready: list[StepOutput] = field(default_factory=list)
    _prefilled: int = 0
    tokenizer: FakeTokenizer = field(default_factory=FakeTokenizer)

    @property
    def has_work(self) -> bool:
        return bool(self._live or self._ready)

    def submit(self, request: Request) -> None:
        if len(self._live) >= self.max_waiting:
            raise QueueFullError(len(self._live))
        if request.id in self._live:
            raise RequestError(f"{request.id} is running", "take another id", Code.CONFLICT)
        self.submitted.append(request)
        self._prefilled += len(request.prompt)
        position = len(request.prefix)
        if position >= request.sampling.max_tokens:
            self._end(request.id, position, FinishReason.LENGTH)
        else:
            self._live[request.id] = _Live(request, position)

    def step(self) -> list[StepOutput]:
        self.steps += 1
        self.hook()
        outputs, self._ready = self._ready, []
        if self.steps == self.short_at and self._live:
            name, live = self._live.popitem()
            outputs.append(StepOutput(
                name, (), "", live.position, (), FinishReason.ERROR, TIMING, MemoryShortError()
            ))  # fmt: skip
        for name, live in list(self._live.items()):
            outputs.append(self._advance(name, live))
        return outputs

    def _advance(self, name: str, live: _Live) -> StepOutput:
        token = FIRST_TOKEN + live.position
        live.position += 1
        done = live.position >= live.request.sampling.max_tokens
        if done:
            del self._live[name]
        logprobs: tuple[TokenLogprob, ...] = ()
        if live.request.sampling.logprobs:
            top = tuple((token + i, -float(i)) for i in range(live.request.sampling.logprobs))
            logprobs = (TokenLogprob(token, 0.0, top),)
        return StepOutput(
            request_id=name,
            token_ids=(token,),
            text=f"<{token}>",
            position=live.position,
            logprobs=logprobs,
            finish=FinishReason.LENGTH if done else None,
            timing=TIMING if done else None,
        )

    def abort(self, request_id: str) -> bool:
        self.aborted.append(request_id)
        live = self._live.pop(request_id, None)
        if live is None:
            return False
        self._end(request_id, live.position, FinishReason.ABORTED)
        return True

    def _end(self, name: str, position: int, finish: FinishReason) -> None:
        self._ready.append(StepOutput(name, (), "", position, (), finish, TIMING))

    def stats(self) -> FakeStats:
        return FakeStats(len(self._live), self._prefilled)

    def check_integrity(self) -> None:
        if self.corrupt:
            raise RuntimeError("the books disagree")


TIMING = Timing(queue_us=10, prefill_us=100, decode_us=1000, ttft_us=110, total_us=1110)
