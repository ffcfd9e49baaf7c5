"""Chooses each next token from its logits: the pipeline of novamesh/sampling/v1.

The 64 largest logits (ties by token id) -> repetition penalty -> temperature -> top_k -> top_p ->
min_p -> the largest of logit / temperature + keyed Gumbel noise. Temperature 0 takes the largest
after the penalty and draws no noise. Rules: a row is chosen from its own logits, parameters, key
and absolute position alone, never from its neighbours in the batch; arithmetic past the candidates
is float64; every tie goes to the smaller id. A row that is not finite gets no choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from novamesh_engine.request import SamplingParams, TokenLogprob
from novamesh_proto.sampling_key import SamplingKey, gumbel

CANDIDATES: Final = 64

Ids = NDArray[np.int64]
Scores = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Draw:
    """One row to choose for: `tokens` are all before it, so their count is its position."""

    sampling: SamplingParams
    key: SamplingKey
    tokens: Sequence[int]

    @property
    def plain(self) -> bool:
        """Whether the largest logit is all that matters."""
        sampling = self.sampling
        return (
            sampling.temperature == 0
            and sampling.repetition_penalty == 1
            and sampling.logprobs == 0
        )


@dataclass(frozen=True, slots=True)
class Choice:
    """A chosen token, and its log probability if that was asked for."""

    token_id: int
    logprob: TokenLogprob | None = None


def choose(logits: Tensor, draws: Sequence[Draw]) -> list[Choice | None]:
    """One choice for each row of logits float32 [R, vocab]; None where logits are not finite."""
    if all(draw.plain for draw in draws):
        return _largest(logits)
    ids, values = candidates(logits)
    finite = torch.isfinite(logits.max(dim=-1).values).tolist()  # NaN wins a max
    wanted = any(draw.sampling.logprobs for draw in draws)
    norms = torch.logsumexp(logits, -1).double().tolist() if wanted else [0.0] * len(draws)
    choices: list[Choice | None] = []
    for row, draw in enumerate(draws):
        if not finite[row]:
            choices.append(None)
            continue
        token = pick(ids[row], values[row], draw)
        report = _report(token, ids[row], values[row] - norms[row], draw.sampling.logprobs)
        choices.append(Choice(token, report))
    return choices


def _largest(logits: Tensor) -> list[Choice | None]:
    values, ids = logits.max(dim=-1)  # of equal values the first, as documented; NaN wins
    found = torch.where(torch.isfinite(values), ids, -1)  # so that a device is waited for once
    return [Choice(token) if token >= 0 else None for token in found.tolist()]


def candidates(logits: Tensor) -> tuple[Ids, Scores]:
    """The largest logits of each row, ids and values [R, min(64, vocab)], ordered (-value, id)."""
    count = min(CANDIDATES, logits.shape[-1])
    values, ids = torch.topk(logits, count, dim=-1)
    # topk takes any of several equals at its boundary; which ones must not depend on the device.
    crowded = (logits >= values[:, -1:]).sum(-1) > count
    top_ids, top_values = ids.cpu().numpy(), values.double().cpu().numpy()
    for row in torch.nonzero(crowded).flatten().tolist():
        last = values[row, -1]
        above = torch.nonzero(logits[row] > last).flatten()
        equal = torch.nonzero(logits[row] == last).flatten()[: count - len(above)]
        chosen = torch.cat((above, equal))
        top_ids[row], top_values[row] = chosen.cpu().numpy(), logits[row, chosen].cpu().numpy()
    order = np.lexsort((top_ids, -top_values))
    return np.take_along_axis(top_ids, order, -1), np.take_along_axis(top_values, order, -1)


def pick(ids: Ids, values: Scores, draw: Draw) -> int:
    """The token of one row, from its candidates' ids and logits, both [C], ordered (-value, id)."""
    sampling, scores = draw.sampling, values
    if sampling.repetition_penalty != 1:
        scores = _penalise(ids, values, draw)
        order = np.lexsort((ids, -scores))
        ids, scores = ids[order], scores[order]
    if sampling.temperature == 0:
        return int(ids[0])
    # Moving all scores alike changes no choice, and keeps a tiny temperature from overflowing.
    with np.errstate(over="ignore"):  # far behind is far behind
        scores = (scores - scores[0]) / sampling.temperature
    kept = _keep(scores, sampling)
    ids, scores = ids[:kept], scores[:kept]
    totals = scores + gumbel(draw.key, len(draw.tokens), ids.tolist())
    return int(ids[totals == totals.max()].min())


def _penalise(ids: Ids, values: Scores, draw: Draw) -> Scores:
    seen = set(draw.tokens)
    repeated = np.fromiter((token in seen for token in ids.tolist()), dtype=bool, count=len(ids))
    penalty = draw.sampling.repetition_penalty
    lowered = np.where(values > 0, values / penalty, values * penalty)
    return np.where(repeated, lowered, values)


def _keep(scores: Scores, sampling: SamplingParams) -> int:
    """How many of the scores, in falling order from 0, survive top_k, top_p and min_p."""
    if sampling.top_k:
        scores = scores[: sampling.top_k]
    weights = np.exp(scores)
    kept = len(weights)
    if sampling.top_p < 1:
        before = np.cumsum(weights) - weights
        kept = int(np.count_nonzero(before < sampling.top_p * weights.sum()))
    if sampling.min_p > 0:
        kept = min(kept, int(np.count_nonzero(weights >= sampling.min_p)))
    return max(kept, 1)


def _report(token: int, ids: Ids, logprobs: Scores, count: int) -> TokenLogprob | None:
    if not count:
        return None
    chosen = float(logprobs[ids == token][0])
    top = zip(ids[:count].tolist(), logprobs[:count].tolist(), strict=True)
    return TokenLogprob(token, chosen, tuple(top))
