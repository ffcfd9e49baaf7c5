"""Memory that runs out while serving costs the newest request of the step, and nobody else."""

from __future__ import annotations

import pytest
import torch

from novamesh_engine.errors import MemoryShortError
from novamesh_engine.request import FinishReason, Request, SamplingParams
from novamesh_engine.tokenizer import Tokenizer
from novamesh_proto.errors import Code
from support.summing_decoder import SummingDecoder, continued
from support.tiny_engine import engine_around, run_dry, small_config
from support.tiny_tokenizer import VOCAB, tiny_tokenizer

CPU_SAYS = "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you ..."
SAMPLING = SamplingParams(max_tokens=6, ignore_eos=True)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def ask(name: str, *prompt: int) -> Request:
    return Request(name, prompt, SAMPLING)


@pytest.mark.parametrize(
    "error",
    [MemoryError(), torch.OutOfMemoryError("CUDA out of memory."), RuntimeError(CPU_SAYS)],
    ids=["process", "device", "torch on the cpu"],
)
def test_the_newest_goes_and_the_rest_goes_on(tokenizer: Tokenizer, error: Exception) -> None:
    decoder = SummingDecoder(VOCAB, 4)
    engine = engine_around(decoder, tokenizer, small_config())
    for name, first in (("a", 5), ("b", 6), ("c", 7)):
        engine.submit(ask(name, first, 8, 9))
    before = [output.request_id for output in engine.step()]
    decoder.faults.append(error)
    (shed, *others) = engine.step()
    assert before == ["a", "b", "c"]
    assert [output.request_id for output in others] == ["a", "b"]
    assert (shed.request_id, shed.finish, shed.position) == ("c", FinishReason.ERROR, 1)
    assert isinstance(shed.error, MemoryShortError)
    assert (shed.error.code, shed.error.retry_after_ms > 0) == (Code.BUSY, True)
    assert shed.timing is not None
    engine.check_integrity()
    assert engine.stats().running == 2
    answers = run_dry(engine)
    assert [*answers["a"].tokens] == continued((5, 8, 9), 6)[2:]
    assert [*answers["b"].tokens] == continued((6, 8, 9), 6)[2:]
    assert (engine.stats().shed, engine.stats().finished) == (1, 3)


def test_the_last_one_goes_too_and_the_engine_stays(tokenizer: Tokenizer) -> None:
    decoder = SummingDecoder(VOCAB, 4, [MemoryError(), MemoryError()])
    engine = engine_around(decoder, tokenizer, small_config())
    answers = run_dry(engine, ask("a", 5), ask("b", 6))
    assert all(isinstance(answers[name].last.error, MemoryShortError) for name in "ab")
    assert [*run_dry(engine, ask("c", 7))["c"].tokens] == continued((7,), 6)


def test_who_only_waits_is_not_meant(tokenizer: Tokenizer) -> None:
    decoder = SummingDecoder(VOCAB, 4, [MemoryError()])
    engine = engine_around(decoder, tokenizer, small_config(max_running=1))
    engine.submit(ask("a", 5))
    engine.submit(ask("b", 6))
    shed, next_one = engine.step()
    assert (shed.request_id, shed.finish) == ("a", FinishReason.ERROR)
    assert (next_one.request_id, next_one.finish) == ("b", None)
    run_dry(engine)


def test_a_long_prompt_is_shed_in_the_middle(tokenizer: Tokenizer) -> None:
    decoder = SummingDecoder(VOCAB, 4)
    engine = engine_around(decoder, tokenizer, small_config(max_step_tokens=8))
    engine.submit(ask("a", 5))
    engine.step()
    engine.submit(ask("b", *range(10, 90)))
    assert [output.request_id for output in engine.step()] == ["a"]
    decoder.faults.append(MemoryError())
    assert [output.request_id for output in engine.step()] == ["b", "a"]
    engine.check_integrity()
    assert [*run_dry(engine)["a"].tokens] == continued((5,), 6)[3:]
