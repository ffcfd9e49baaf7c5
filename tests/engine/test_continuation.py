"""An answer interrupted at any token and continued by forced prefix equals the uninterrupted one.

Tokens, text, positions, log probabilities' tokens and the ending are all compared, at every cut:
greedy and sampled, with stop strings, on a random model and on one that speaks long characters.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from novamesh_engine.catalogue import locate
from novamesh_engine.config import EngineConfig
from novamesh_engine.engine import Engine
from novamesh_engine.request import Request, SamplingParams
from novamesh_engine.tokenizer import Tokenizer
from support.tiny_engine import Answer, load_exact, run_dry, save_tiny, scripted_engine
from support.tiny_tokenizer import EOS, tiny_tokenizer

SLOW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    torch.set_num_threads(1)
    folder = save_tiny(tmp_path_factory.mktemp("model"), seed=3)
    return load_exact(folder, block_size=4, max_step_tokens=64)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def check_every_cut(engine: Engine, prompt: tuple[int, ...], sampling: SamplingParams) -> Answer:
    """Continue from every cut, all at once, and compare with the uninterrupted answer."""
    whole = run_dry(engine, Request("whole", prompt, sampling))["whole"]
    cuts = range(len(whole.tokens) + 1)
    continued = run_dry(
        engine, *(Request(str(cut), prompt, sampling, whole.tokens[:cut]) for cut in cuts)
    )
    for cut in cuts:
        answer = continued[str(cut)]
        received = Answer(whole.outputs[:cut])
        assert received.tokens + answer.tokens == whole.tokens
        assert received.text + answer.text == whole.text
        assert answer.last.finish is whole.last.finish
        assert answer.last.position == whole.last.position
        if cut < len(whole.tokens):
            assert _reports(answer) == _reports(Answer(whole.outputs[cut:]))
    return whole


def _reports(answer: Answer) -> list[tuple[int, list[int]]]:
    return [
        (report.token_id, [id_ for id_, _ in report.top])
        for output in answer.outputs
        for report in output.logprobs
    ]


@SLOW
@given(
    prompt=st.lists(st.integers(2, 383), min_size=1, max_size=12),
    seed=st.binary(min_size=32, max_size=32),
    temperature=st.sampled_from([0.0, 0.7, 1.5]),
    penalty=st.sampled_from([1.0, 1.3]),
    cut_text=st.integers(0, 10),
)
def test_every_cut_of_a_random_model(
    engine: Engine, prompt: list[int], seed: bytes, temperature: float, penalty: float,
    cut_text: int,
) -> None:  # fmt: skip
    plain = SamplingParams(
        max_tokens=16, temperature=temperature, seed=seed, repetition_penalty=penalty,
        top_k=40, top_p=0.9, min_p=0.01, logprobs=2,
    )  # fmt: skip
    text = check_every_cut(engine, tuple(prompt), plain).text
    stop = text[cut_text : cut_text + 2]
    if stop:
        again = SamplingParams(
            max_tokens=16, temperature=temperature, seed=seed, repetition_penalty=penalty,
            top_k=40, top_p=0.9, min_p=0.01, stop=(stop, "never said"),
        )  # fmt: skip
        assert check_every_cut(engine, tuple(prompt), again).text == text[: text.find(stop)]


@SLOW
@given(
    text=st.text("aé光🦊\u200d.", min_size=1, max_size=8),
    stops=st.lists(st.text("aé光🦊.", min_size=1, max_size=3), max_size=2),
    most=st.integers(1, 30),
)
def test_every_cut_of_long_characters(
    tokenizer: Tokenizer, text: str, stops: list[str], most: int
) -> None:
    single = {tokenizer.token_bytes(index): index for index in range(2, 260)}
    script = dict(enumerate([*(single[bytes([b])] for b in text.encode()), EOS], 3))
    engine = scripted_engine(tokenizer, script)
    sampling = SamplingParams(max_tokens=most, stop=tuple(stops))
    answer = check_every_cut(engine, (5, 6, 7), sampling)
    assert "\ufffd" not in answer.text
    assert text.startswith(answer.text)


@pytest.mark.parametrize("precision", ["int8", "exact"])
def test_the_built_in_model_goes_on_bit_for_bit(precision: str) -> None:
    """Long enough that a sum in another order would choose another token somewhere."""
    engine = Engine.load(locate("nova-pico"), EngineConfig(threads=1, precision=precision))
    prompt = engine.tokenizer.encode_chat([{"role": "user", "content": "Tell of 12 apples."}])
    sampling = SamplingParams(max_tokens=400, temperature=0.9, seed=b"7" * 32, ignore_eos=True)
    whole = run_dry(engine, Request("whole", prompt, sampling))["whole"]
    cuts = (20, 60, 120, 200, 280, 360)
    requests = [Request(str(cut), prompt, sampling, whole.tokens[:cut]) for cut in cuts]
    for cut, request in zip(cuts, requests, strict=True):
        answer = run_dry(engine, request)[str(cut)]
        assert whole.tokens[:cut] + answer.tokens == whole.tokens, cut
