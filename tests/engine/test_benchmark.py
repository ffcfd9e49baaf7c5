"""The arithmetic of a benchmark on a clock that is known, and that it never disturbs work."""

from __future__ import annotations

import pytest

from novamesh_engine.benchmark import Load, measure
from novamesh_engine.errors import RequestError
from novamesh_engine.request import Request, SamplingParams
from novamesh_engine.tokenizer import Tokenizer
from novamesh_proto.errors import Code
from support.tiny_engine import TickingClock, run_dry, scripted_engine
from support.tiny_tokenizer import VOCAB, tiny_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def test_rates_are_tokens_over_the_phase(tokenizer: Tokenizer) -> None:
    engine = scripted_engine(tokenizer, {})
    result = measure(engine, TickingClock(10_000_000), VOCAB, Load(50, 11, 2))
    # The clock is looked at when a run begins, when all have spoken, and after each step from then
    # on: 10 ms apart.
    assert result.prefill_tokens_per_s == pytest.approx(2 * 50 / 0.01)
    assert result.decode_tokens_per_s == pytest.approx(2 * 10 / 0.1)
    assert result.step_ms == pytest.approx([10.0] * 10)
    assert result.ttft_ms == pytest.approx(10)
    assert not engine.has_work


def test_what_is_compiled_at_first_sight_is_seen_before_it_is_measured(
    tokenizer: Tokenizer,
) -> None:
    prompts = {}
    for compiles in (False, True):
        engine = scripted_engine(tokenizer, {})
        measure(engine, TickingClock(), VOCAB, Load(50, 11, 2), compiles)
        prompts[compiles] = engine.stats().prefill_tokens
    assert prompts == {False: 16 + 2 * 50, True: 2 * 2 * 50}


def test_a_busy_engine_is_left_alone(tokenizer: Tokenizer) -> None:
    engine = scripted_engine(tokenizer, {})
    engine.submit(Request("a", (5,), SamplingParams(max_tokens=2)))
    with pytest.raises(RequestError, match="at work") as refused:
        engine.benchmark()
    assert refused.value.code is Code.CONFLICT
    assert set(run_dry(engine)) == {"a"}


def test_a_benchmark_that_fails_leaves_no_work(tokenizer: Tokenizer) -> None:
    engine = scripted_engine(tokenizer, {}, faults=[RuntimeError("a kernel failed")])
    with pytest.raises(RuntimeError, match="a kernel failed"):
        engine.benchmark()
    assert not engine.has_work
    engine.check_integrity()


@pytest.mark.parametrize("counts", [(0, 8, 1), (8, 1, 1), (8, 8, 0), (1 << 17, 8, 1)])
def test_counts_out_of_range_are_refused(counts: tuple[int, int, int]) -> None:
    with pytest.raises(RequestError, match="a benchmark of"):
        Load(*counts)
