"""The machine: requests in, tokens out. submit / step / abort; one step = schedule, run, settle.

Rules: synchronous, and used from one thread; it knows no job, no user and no network. A step that
raises has settled nothing and can be repeated. A step that runs out of memory ends its newest
request with an error and is repeated with the rest. Each request ends with exactly one output that
carries `finish`. The same request with the same seed gives the same tokens whatever runs beside it
and wherever it was interrupted, as long as the kernels compute a row alike in every batch: a
token alone and the same inside a prompt agree to rounding, which int8 activations can magnify
(docs/engine.md), so where two tokens are that close another one could be taken.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from novamesh_engine.benchmark import Benchmark, Load, measure
from novamesh_engine.blocks import BlockPool
from novamesh_engine.catalogue import locate
from novamesh_engine.completion import Completion
from novamesh_engine.config import EngineConfig
from novamesh_engine.errors import (
    IntegrityError,
    MemoryShortError,
    NoNumbersError,
    QueueFullError,
    RequestError,
)
from novamesh_engine.heap import give_back_memory
from novamesh_engine.kernels.choice import Forward
from novamesh_engine.kv_cache import DTYPES, PagedKV, slot_bytes
from novamesh_engine.models.config import ModelConfig
from novamesh_engine.opening import open_model
from novamesh_engine.prefix_cache import PrefixCache
from novamesh_engine.quant.profile import ModelProfile
from novamesh_engine.report import Plan
from novamesh_engine.request import FinishReason, Request, StepOutput, TokenLogprob
from novamesh_engine.roofline import step_bytes
from novamesh_engine.runner import Runner
from novamesh_engine.sampling import Choice, Draw, choose
from novamesh_engine.scheduler import Chunk, Scheduler
from novamesh_engine.sequence import Sequence
from novamesh_engine.shortage import is_out_of_memory
from novamesh_engine.tokenizer import Tokenizer
from novamesh_engine.weights.load import LoadedModel
from novamesh_engine.weights.place import Placement
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.sampling_key import PROFILE_BYTES, SamplingKey, derive


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What the engine holds now, and what it has done since it was made."""

    waiting: int
    running: int
    blocks_total: int
    blocks_free: int
    blocks_cached: int  # whose contents can be used again, held or free
    steps: int
    prefill_tokens: int  # computed by prefill, recomputation after a preemption included
    generated_tokens: int
    prefix_hits: int  # admissions that found a beginning computed already
    prefix_tokens: int  # tokens that these did not compute
    preemptions: int
    shed: int  # ended because memory ran out
    finished: int


@dataclass(frozen=True, slots=True)
class _Live:
    """A request that has not ended."""

    sequence: Sequence
    completion: Completion
    key: SamplingKey


class Engine:
    """One model with its cache, its queue and its tokenizer."""

    def __init__(
        self,
        model: LoadedModel,
        forward: Forward,
        tokenizer: Tokenizer,
        config: EngineConfig,
        clock: Callable[[], int] = time.perf_counter_ns,
        placement: Placement | None = None,
    ) -> None:
        shape, dtype = model.config, DTYPES[config.kv_dtype]
        blocks = config.blocks(slot_bytes(shape, dtype), shape.max_context)
        pool = BlockPool(blocks, config.block_size)
        kv = PagedKV(shape, blocks, config.block_size, dtype, config.device)
        self.config = config
        self.model: ModelConfig = shape
        self.profile: ModelProfile | None = model.profile
        self.tokenizer = tokenizer
        self.max_context = min(config.context(shape.max_context), pool.slots)
        self._pool = pool
        self._scheduler = Scheduler(
            pool,
            PrefixCache(config.block_size, config.prefix_cache),
            config.max_running,
            config.max_waiting,
            config.max_step_tokens,
        )
        self._runner = Runner(forward, kv, config.block_size)
        self._placement = placement
        self._end_ids = tuple({*shape.eos_ids, *tokenizer.eos_ids})
        self._decoder = model.decoder
        self._regime = model.decoder.rotary.regime
        self._clock = clock
        self._live: dict[str, _Live] = {}
        self._ready: list[StepOutput] = []  # endings that no step made: aborted, or ended at once
        self._arrivals = 0
        self._steps = 0
        self._prefilled = 0
        self._generated = 0
        self._shed = 0
        self._finished = 0

    @classmethod
    def load(cls, model: str | Path, config: EngineConfig | None = None) -> Engine:
        """Load a built-in model by name, or a model folder or profile by path.

        Raises: NovaMeshError (model_not_found, corrupt, unsupported, bad_config).
        """
        chosen = config or EngineConfig()
        folder = locate(model)
        opened = open_model(folder, chosen)
        profile = opened.model.profile
        tokenizer = Tokenizer.load(folder, None if profile is None else profile.file_names)
        engine = cls(
            opened.model, opened.forward, tokenizer, opened.config, placement=opened.placement
        )
        give_back_memory()
        return engine

    @property
    def has_work(self) -> bool:
        """Whether a step has anything to do or to say."""
        return bool(self._live or self._ready)

    @property
    def plan(self) -> Plan:
        """What was chosen to compute with."""
        forward, placed = self._runner.forward, self._placement
        return Plan(
            forward.name, forward.precision, forward.threads, self.config.kv_dtype, forward.why,
            "" if placed is None else placed.line,
        )  # fmt: skip

    def step_bytes(self, batch: int) -> int:
        """Weight bytes that a decode step of so many tokens reads."""
        return step_bytes(self._decoder, batch)

    @property
    def digest(self) -> bytes:
        """32 bytes that name the model; zeros for a folder without a manifest."""
        return bytes(PROFILE_BYTES) if self.profile is None else self.profile.digest

    def submit(self, request: Request) -> None:
        """Queue a request; its forced prefix is taken as received, and gives no output.

        Raises: QueueFullError (busy); RequestError (conflict) for an id in use, (too_large) for a
        prompt beyond the context, (bad_request) for unknown tokens or a prefix past its own end.
        """
        self._check(request)
        room = self.max_context - len(request.prompt)
        completion = Completion(self.tokenizer.token_bytes, request.sampling, self._end_ids, room)
        finish = _replay(completion, request.prefix)
        regime = self._regime(len(request.prompt))
        sequence = Sequence(request, self._arrivals, self._clock(), regime)
        key = derive(request.sampling.seed, self.digest)
        if finish is not None:
            self._finished += 1
            self._end(sequence, finish)
        else:
            self._scheduler.add(sequence)
            self._live[request.id] = _Live(sequence, completion, key)
        self._arrivals += 1

    def _check(self, request: Request) -> None:
        if request.id in self._live:
            message = f"request {request.id} is already running"
            raise RequestError(message, "give each request its own id", Code.CONFLICT)
        if len(self._ready) >= self.config.max_waiting + self.config.max_running:
            raise QueueFullError(len(self._ready))
        if len(request.prompt) >= self.max_context:
            message = f"the prompt has {len(request.prompt)} tokens, not under {self.max_context}"
            raise RequestError(message, "shorten the prompt", Code.TOO_LARGE)
        if any(not 0 <= token < self.model.vocab_size for token in request.prompt + request.prefix):
            message = f"a token id is outside the model's {self.model.vocab_size}"
            raise RequestError(message, "encode with this model's own tokenizer")

    def step(self) -> list[StepOutput]:
        """Run one batch; what it added to each answer. Empty while prompts are being prefilled."""
        outputs: list[StepOutput] = []
        chunks, lasts, choices = self._compute()
        if chunks:
            self._count(chunks)
            self._scheduler.settle(chunks)
            outputs = [self._settle(*pair) for pair in zip(lasts, choices, strict=True)]
        outputs, self._ready = self._ready + outputs, []
        return outputs

    def _compute(self) -> tuple[tuple[Chunk, ...], list[_Live], list[Choice | None]]:
        """Schedule and run; as long as memory runs out, without the newest of the batch."""
        while chunks := self._scheduler.schedule():
            now = self._clock()
            for chunk in chunks:
                chunk.sequence.admit(now)
            lasts = [self._live[chunk.sequence.id] for chunk in chunks if chunk.last]
            try:
                return chunks, lasts, self._choose(chunks, lasts)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
            self._drop_newest(chunks)  # here the error, and what its frames hold, is gone
        return (), [], []

    def _choose(self, chunks: tuple[Chunk, ...], lasts: list[_Live]) -> list[Choice | None]:
        logits = self._runner.run(chunks)
        draws = [Draw(live.sequence.sampling, live.key, live.sequence.tokens) for live in lasts]
        return choose(logits, draws) if draws else []

    def _drop_newest(self, chunks: tuple[Chunk, ...]) -> None:
        newest = max((chunk.sequence for chunk in chunks), key=_arrival)
        self._forget(newest)
        self._end(newest, FinishReason.ERROR, MemoryShortError())
        self._shed += 1
        give_back_memory()

    def _count(self, chunks: tuple[Chunk, ...]) -> None:
        self._steps += 1
        self._generated += sum(chunk.last for chunk in chunks)
        self._prefilled += sum(chunk.count for chunk in chunks if chunk.sequence.pending > 1)

    def _settle(self, live: _Live, choice: Choice | None) -> StepOutput:
        sequence, now = live.sequence, self._clock()
        tokens: tuple[int, ...] = ()
        logprobs: tuple[TokenLogprob, ...] = ()
        text, finish, error = "", None, None
        if choice is None:
            finish, error = FinishReason.ERROR, NoNumbersError()
        else:
            sequence.append(choice.token_id, now)
            text, finish = live.completion.accept(choice.token_id)
            tokens = (choice.token_id,)
            logprobs = () if choice.logprob is None else (choice.logprob,)
        timing = None
        if finish is not None:
            timing = sequence.timing(now)
            self._forget(sequence, sound=error is None)
        return StepOutput(
            sequence.id, tokens, text, sequence.position, logprobs, finish, timing, error
        )

    def abort(self, request_id: str) -> bool:
        """End a request now; its last output comes with the next step. False if it is not here."""
        live = self._live.get(request_id)
        if live is None:
            return False
        self._forget(live.sequence)
        self._end(live.sequence, FinishReason.ABORTED)
        return True

    def _forget(self, sequence: Sequence, sound: bool = True) -> None:
        self._scheduler.remove(sequence, sound)
        del self._live[sequence.id]
        self._finished += 1

    def _end(
        self, sequence: Sequence, finish: FinishReason, error: NovaMeshError | None = None
    ) -> None:
        timing = sequence.timing(self._clock())
        self._ready.append(
            StepOutput(sequence.id, (), "", sequence.position, (), finish, timing, error)
        )

    def stats(self) -> EngineStats:
        """Counts for status lines and metrics."""
        return EngineStats(
            waiting=self._scheduler.waiting,
            running=self._scheduler.running,
            blocks_total=self._pool.total,
            blocks_free=self._pool.free,
            blocks_cached=len(self._scheduler.cache),
            steps=self._steps,
            prefill_tokens=self._prefilled,
            generated_tokens=self._generated,
            prefix_hits=self._scheduler.prefix_hits,
            prefix_tokens=self._scheduler.prefix_tokens,
            preemptions=self._scheduler.preemptions,
            shed=self._shed,
            finished=self._finished,
        )

    def benchmark(
        self, prompt_tokens: int = 128, decode_tokens: int = 64, requests: int = 1
    ) -> Benchmark:
        """Measure this engine's speed; lengths are cut to what its context holds.

        Raises: RequestError (conflict) while there is work, (bad_request) for counts out of range.
        """
        if requests > self.config.max_running:
            message = f"{requests} requests do not run at once, only {self.config.max_running}"
            raise RequestError(message, "take fewer requests or raise max_running")
        decode = min(decode_tokens, max(2, self.max_context // 2))
        prompt = min(prompt_tokens, self.max_context - decode)
        load, compiles = Load(prompt, decode, requests), self.config.device != "cpu"
        return measure(self, self._clock, self.model.vocab_size, load, compiles)

    def check_integrity(self) -> None:
        """Compare all books with each other; cheap enough to call when idle.

        Raises: IntegrityError.
        """
        self._scheduler.check_integrity()
        if [sequence.id for sequence in self._scheduler] != [
            sequence.id
            for sequence in sorted((live.sequence for live in self._live.values()), key=_arrival)
        ]:
            raise IntegrityError("the scheduler and the engine know different requests")


def _arrival(sequence: Sequence) -> int:
    return sequence.arrival


def _replay(completion: Completion, prefix: tuple[int, ...]) -> FinishReason | None:
    """Bring a completion to where an interrupted answer was; how it ended if it was complete."""
    finish = None
    for token in prefix:
        if finish is not None:
            message = "the forced prefix goes on after its answer ended"
            raise RequestError(message, "send only tokens that this request produced")
        _, finish = completion.accept(token)
    return finish
