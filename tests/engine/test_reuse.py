"""What the prefix cache does to a whole engine: fewer tokens computed, and the same answers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from novamesh_engine.models.rope import Rope
from novamesh_engine.models.rotary import Rotary
from novamesh_engine.request import Request, SamplingParams
from novamesh_engine.tokenizer import Tokenizer
from support.summing_decoder import SummingDecoder, continued
from support.tiny_engine import (
    engine_around,
    load_exact,
    run_dry,
    save_tiny,
    scripted_engine,
    small_config,
)
from support.tiny_tokenizer import VOCAB, tiny_tokenizer

PROMPT = tuple(range(10, 60))
SAMPLING = SamplingParams(max_tokens=9, ignore_eos=True)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return save_tiny(tmp_path_factory.mktemp("model"))


def ask(name: str, prompt: tuple[int, ...] = PROMPT, scope: bytes = b"client") -> Request:
    return Request(name, prompt, SAMPLING, (), scope)


@pytest.mark.parametrize("enabled", [True, False])
def test_a_model_answers_the_same_with_and_without(folder: Path, enabled: bool) -> None:
    engine = load_exact(folder, prefix_cache=enabled)
    wanted = run_dry(engine, ask("a", scope=b""))["a"].tokens
    first, again = (run_dry(engine, ask(name))[name].tokens for name in "bc")
    longer = run_dry(engine, ask("d", PROMPT + first + (7, 8)))["d"].tokens
    apart = run_dry(engine, ask("e", PROMPT + first + (7, 8), b"another"))["e"].tokens
    assert first == again == wanted
    assert longer == apart
    stats = engine.stats()
    # 50 tokens: 3 pages of 16, then 3 of the 61 that hold prompt and answer.
    assert stats.prefix_tokens == (48 + 48 if enabled else 0)
    assert stats.prefix_hits == (2 if enabled else 0)
    assert (stats.blocks_cached > 0) == enabled
    assert stats.prefill_tokens == 3 * 50 + 2 * 61 - stats.prefix_tokens


def test_a_conversation_goes_on_where_its_answer_ended(tokenizer: Tokenizer) -> None:
    engine = engine_around(SummingDecoder(VOCAB, 4), tokenizer, small_config())
    answer = run_dry(engine, ask("a"))["a"].tokens
    assert [*answer] == continued(PROMPT, 9)
    prompt = PROMPT + answer + (5, 6, 7)
    assert [*run_dry(engine, ask("b", prompt))["b"].tokens] == continued(prompt, 9)
    assert engine.stats().prefix_tokens == 56  # all of 50 + 8 that were computed and fill pages


@pytest.mark.parametrize("scopes", [(b"", b""), (b"one", b"other"), (b"one", b"")])
def test_nobody_saves_by_what_another_sent(
    tokenizer: Tokenizer, scopes: tuple[bytes, bytes]
) -> None:
    engine = engine_around(SummingDecoder(VOCAB, 4), tokenizer, small_config())
    for name, scope in zip("ab", scopes, strict=True):
        run_dry(engine, ask(name, scope=scope))
    assert engine.stats().prefix_tokens == 0


def test_angles_that_depend_on_the_length_share_no_keys(tokenizer: Tokenizer) -> None:
    rope = Rope("dynamic", 1e4, factor=4.0, original=16)
    decoder = SummingDecoder(VOCAB, 4, rotary=Rotary.create(rope, 4))
    engine = engine_around(decoder, tokenizer, small_config())
    for name, length, saved in (("a", 12, 0), ("b", 16, 12), ("c", 40, 12), ("d", 40, 48)):
        run_dry(engine, ask(name, PROMPT[:length]))
        assert engine.stats().prefix_tokens == saved


def test_bad_numbers_are_not_used_again(tokenizer: Tokenizer) -> None:
    engine = scripted_engine(tokenizer, {}, broken=[50])
    for name in "ab":
        assert run_dry(engine, ask(name))[name].last.error is not None
    assert (engine.stats().prefix_tokens, engine.stats().blocks_cached) == (0, 0)


def test_whoever_gave_way_computes_less_again(tokenizer: Tokenizer) -> None:
    work = []
    for enabled in (True, False):
        config = small_config(kv_bytes_max=10 * 4 * 16, prefix_cache=enabled)
        engine = engine_around(SummingDecoder(VOCAB, 4), tokenizer, config)
        prompts = {name: (index, *range(5, 20)) for index, name in enumerate("ab", 5)}
        answers = run_dry(engine, *(ask(name, prompt) for name, prompt in prompts.items()))
        for name, prompt in prompts.items():
            assert [*answers[name].tokens] == continued(prompt, 9)
        assert engine.stats().preemptions == 1
        work.append(engine.stats().prefill_tokens)
    assert work[0] < work[1]


def test_more_prompts_than_fit_push_out_the_oldest(tokenizer: Tokenizer) -> None:
    config = small_config(kv_bytes_max=40 * 4 * 16)
    engine = engine_around(SummingDecoder(VOCAB, 4), tokenizer, config)
    for index in range(6):
        prompt = (index + 5, *PROMPT)
        assert [*run_dry(engine, ask("a", prompt))["a"].tokens] == continued(prompt, 9)
    stats = engine.stats()
    assert (stats.prefix_tokens, stats.blocks_free) == (0, 40)
    assert 0 < stats.blocks_cached <= 40
    run_dry(engine, ask("a", (10, *PROMPT)))
    assert engine.stats().prefix_hits == 1
