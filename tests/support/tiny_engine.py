"""A whole engine around a tiny random model or around a scripted one, and how to run it dry."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from novamesh_engine.config import EngineConfig
from novamesh_engine.engine import Engine
from novamesh_engine.request import Request, StepOutput
from novamesh_engine.tokenizer import Tokenizer
from novamesh_engine.weights.load import LoadedModel
from support.scripted_decoder import ScriptedDecoder, scripted_config
from support.tiny_moe import save_nova
from support.tiny_tokenizer import EOS, VOCAB, write_tokenizer
from support.watched import watched


class TickingClock:
    """Nanoseconds that grow by a fixed step with each look."""

    def __init__(self, step_ns: int = 1_000_000) -> None:
        self.now_ns = 0
        self.step_ns = step_ns

    def __call__(self) -> int:
        self.now_ns += self.step_ns
        return self.now_ns


def save_tiny(folder: Path, **changes: Any) -> Path:
    """A random nova model with the tiny tokenizer, as a plain folder."""
    save_nova(folder, **{"vocab_size": VOCAB, "eos_token_id": EOS} | changes)
    return write_tokenizer(folder)


def scripted_engine(
    tokenizer: Tokenizer,
    script: Mapping[int, int],
    broken: Iterable[int] = (),
    faults: Iterable[Exception] = (),
    max_context: int = 256,
    **settings: Any,
) -> Engine:
    """An engine whose model speaks a script by absolute position, on a clock that ticks."""
    config = small_config(**settings)
    decoder = ScriptedDecoder(VOCAB, config.block_size, script, frozenset(broken), [*faults])
    return engine_around(decoder, tokenizer, config, max_context)


def small_config(**settings: Any) -> EngineConfig:
    """Small pages of exact numbers, as a decoder that writes tokens into its cache needs them."""
    return EngineConfig(**{"block_size": 4, "kv_bytes_max": 1 << 16, "kv_dtype": "fp32"} | settings)


def engine_around(
    decoder: Any, tokenizer: Tokenizer, config: EngineConfig, max_context: int = 256
) -> Engine:
    """An engine whose decoder is no model, on a clock that ticks."""
    model = LoadedModel(scripted_config(VOCAB, max_context), decoder, None)
    return watched(Engine(model, decoder, tokenizer, config, TickingClock()))


def load_exact(folder: Path, **settings: Any) -> Engine:
    """A model folder's engine that rounds nothing, so that any two runs are equal."""
    return watched(
        Engine.load(folder, EngineConfig(**{"kv_dtype": "fp32", "precision": "exact"} | settings))
    )


@dataclass(frozen=True)
class Answer:
    """All that an engine said about one request."""

    outputs: tuple[StepOutput, ...]

    @property
    def tokens(self) -> tuple[int, ...]:
        return tuple(token for output in self.outputs for token in output.token_ids)

    @property
    def text(self) -> str:
        return "".join(output.text for output in self.outputs)

    @property
    def last(self) -> StepOutput:
        return self.outputs[-1]


def run_dry(engine: Engine, *requests: Request) -> dict[str, Answer]:
    """Submit requests and step until nothing is left, with the books checked at each step."""
    for request in requests:
        engine.submit(request)
    said: dict[str, list[StepOutput]] = {}
    for _ in range(10_000):
        if not engine.has_work:
            break
        for output in engine.step():
            said.setdefault(output.request_id, []).append(output)
        engine.check_integrity()
    stats = engine.stats()
    assert not engine.has_work
    assert stats.blocks_free == stats.blocks_total
    return {id_: Answer(tuple(outputs)) for id_, outputs in said.items()}
