"""The sampling pipeline against its specification, written again without numpy tricks."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from novamesh_engine.request import SamplingParams
from novamesh_engine.sampling import CANDIDATES, Choice, Draw, candidates, choose, pick
from novamesh_proto.sampling_key import derive, gumbel

KEY = derive(bytes(32), bytes(32))
FEW = st.sampled_from([0.0, 0.5, 1.0, 2.0, -1.0, -3.5, 7.25])  # few values: many ties
LOGITS = st.one_of(
    st.lists(FEW, min_size=1, max_size=200), st.lists(st.floats(-30, 30, width=32), min_size=1)
)


def draw(tokens: tuple[int, ...] = (1, 2), seed: bytes = bytes(32), **params: object) -> Draw:
    return Draw(SamplingParams(**params), derive(seed, bytes(32)), tokens)  # type: ignore[arg-type]


def choose_one(logits: list[float], one: Draw) -> int | None:
    (choice,) = choose(torch.tensor([logits], dtype=torch.float32), [one])
    return None if choice is None else choice.token_id


def specified(logits: list[float], one: Draw) -> int:
    """novamesh/sampling/v1, step by step."""
    sampling = one.sampling
    ranked = sorted(range(len(logits)), key=lambda token: (-logits[token], token))[:CANDIDATES]
    scores = {token: logits[token] for token in ranked}
    for token in scores:
        if token in one.tokens and scores[token] > 0:
            scores[token] /= sampling.repetition_penalty
        elif token in one.tokens:
            scores[token] *= sampling.repetition_penalty
    ranked = sorted(scores, key=lambda token: (-scores[token], token))
    if sampling.temperature == 0:
        return ranked[0]
    ranked = ranked[: sampling.top_k or CANDIDATES]
    best = scores[ranked[0]]
    weights = [math.exp((scores[token] - best) / sampling.temperature) for token in ranked]
    kept, before = [], 0.0
    for token, weight in zip(ranked, weights, strict=True):
        inside = sampling.top_p >= 1 or before < sampling.top_p * sum(weights)
        if inside and weight >= sampling.min_p:
            kept.append(token)
        before += weight
    noise = gumbel(one.key, len(one.tokens), kept)
    totals = [
        (scores[token] - best) / sampling.temperature + float(extra)
        for token, extra in zip(kept, noise, strict=True)
    ]
    return min(kept, key=lambda token: (-totals[kept.index(token)], token))


@given(
    LOGITS,
    st.binary(min_size=32, max_size=32),
    st.lists(st.integers(0, 199), max_size=6).map(tuple),
    st.sampled_from([0.0, 0.3, 1.0, 3.0]),
    st.sampled_from([0, 1, 5, 64]),
    st.sampled_from([0.2, 0.91, 1.0]),
    st.sampled_from([0.0, 0.11, 1.0]),
    st.sampled_from([1.0, 1.7, 0.6]),
)
@settings(max_examples=300, deadline=None)
def test_it_does_what_is_specified(
    logits: list[float], seed: bytes, tokens: tuple[int, ...], temperature: float, top_k: int,
    top_p: float, min_p: float, penalty: float,
) -> None:  # fmt: skip
    one = draw(
        tokens, seed, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
        repetition_penalty=penalty,
    )  # fmt: skip
    assert choose_one(logits, one) == specified(logits, one)


@given(LOGITS)
@settings(deadline=None)
def test_candidates_are_the_largest_in_order(logits: list[float]) -> None:
    ids, values = candidates(torch.tensor([logits, logits[::-1]], dtype=torch.float32))
    for row, line in enumerate((logits, logits[::-1])):
        wanted = sorted(range(len(line)), key=lambda token: (-line[token], token))[:CANDIDATES]
        assert ids[row].tolist() == wanted
        assert values[row].tolist() == [line[token] for token in wanted]


@given(st.integers(65, 3000), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_of_equals_at_the_boundary_the_smaller_ids_are_taken(size: int, seed: int) -> None:
    logits = torch.from_numpy(np.random.default_rng(seed).integers(0, 4, size)).float()
    ids, _ = candidates(logits[None])
    wanted = sorted(range(size), key=lambda token: (-float(logits[token]), token))
    assert ids[0].tolist() == wanted[:CANDIDATES]


@given(LOGITS)
@settings(deadline=None)
def test_greedy_takes_the_first_of_equals_on_both_paths(logits: list[float]) -> None:
    wanted = logits.index(max(logits))
    assert choose_one(logits, draw()) == wanted
    assert choose_one(logits, draw(logprobs=1)) == wanted


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, 300)
    draws = [draw((1,) * i, bytes([i] * 32), temperature=1.0, logprobs=i) for i in range(4)]
    together = choose(logits, draws)
    alone = [choose(logits[i : i + 1], draws[i : i + 1])[0] for i in range(4)]
    assert together == alone


@pytest.mark.parametrize("params", [{}, {"temperature": 1.0}])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_row_that_is_not_finite_gets_no_choice(params: dict[str, Any], bad: float) -> None:
    logits = torch.zeros(2, 100)
    logits[0, 50], logits[1, 7] = bad, 3.0
    first, second = choose(logits, [draw(**params), draw(temperature=0.001)])
    assert first is None
    assert second == Choice(7)
    assert choose(torch.full((1, 4), -math.inf), [draw(**params)]) == [None]


def test_forbidden_tokens_are_never_chosen() -> None:
    logits = [-math.inf] * 100
    logits[42] = logits[43] = 0.0
    chosen = {choose_one(logits, draw((1,) * n, temperature=100.0)) for n in range(50)}
    assert chosen == {42, 43}


def test_the_smallest_temperature_is_greedy() -> None:
    assert choose_one([1e3, 1e3 - 1e-3, -1e3], draw(temperature=5e-324)) == 0


def test_choices_are_distributed_as_softmax() -> None:
    logits = np.array([2.0, 1.0, 0.0, -1.0])
    ids = np.arange(4)
    sampling, count = SamplingParams(temperature=0.8), 4000
    found = Counter(
        pick(ids, logits, Draw(sampling, KEY, range(position))) for position in range(count)
    )
    wanted = np.exp(logits / 0.8) / np.exp(logits / 0.8).sum()
    squares = sum((found[t] - count * wanted[t]) ** 2 / (count * wanted[t]) for t in range(4))
    assert squares < 16.3  # chi-square, 3 degrees of freedom, p = 0.001; the key is fixed


def test_logprobs_are_of_the_unmodified_logits() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    one = draw((3,), temperature=0.5, repetition_penalty=50.0, top_k=1, logprobs=2)
    (choice,) = choose(logits, [one])
    wanted = torch.log_softmax(logits[0].double(), -1).tolist()
    assert choice is not None
    assert choice.logprob is not None
    assert choice.token_id == choice.logprob.token_id == 2  # 3 was said before
    assert choice.logprob.logprob == pytest.approx(wanted[2], abs=1e-6)
    assert [token for token, _ in choice.logprob.top] == [3, 2]


def test_more_logprobs_than_tokens_are_all_tokens() -> None:
    (choice,) = choose(torch.zeros(1, 3), [draw(logprobs=20)])
    assert choice is not None
    assert choice.logprob is not None
    assert len(choice.logprob.top) == 3
