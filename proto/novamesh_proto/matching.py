"""Rank nodes for a job, with reasons: one pure function for coordinator and client.

Rules: filter first, then expect a time for every node left, then draw with weights, so that clients
do not all pick the same node. A witnessed speed counts before a claimed one, and a claim counts no
more than the best speed that anybody witnessed. Nobody witnesses how fast a prompt is read: that
claim counts no more than a fixed multiple of the speed believed so far. Nodes without a record
share a fixed part of the draw, so that they can earn one. Every node given is either chosen or
refused, with a sentence.

It asks no clock and owns no state: `rng` decides, and the order of the nodes given does not.
Banned and absent nodes are not the caller's to pass.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import ModelOffer, NodeDescriptor, NodeId, ProfileDigest

BYTES_PER_TOKEN: Final = 4  # of ordinary prompts; the node that renders the prompt counts exactly
SPEED_EXPONENT: Final = 2.0  # a node twice as fast is drawn four times as often
EXPLORED_JOBS: Final = 5  # a node with fewer settled jobs is new
EXPLORATION_SHARE: Final = 0.1  # of the draw, for all new nodes together
UNKNOWN_TOKENS_PER_S: Final = 1.0  # where neither a witness nor a claim says anything
TOKENS_PER_S_MIN: Final = 0.001  # keeps every expected time finite
SECONDS_MIN: Final = 0.001
# Decoding reads every active weight for one token, a prompt shares one reading among its tokens,
# until arithmetic is the limit: on today's devices after some hundred tokens at most.
PREFILL_PER_DECODE_MAX: Final = 128.0


class Cause(StrEnum):
    """Why a node was not chosen."""

    EXCLUDED = "excluded"
    NO_MODEL = "no_model"
    CONTEXT = "context"
    NOT_ACCEPTING = "not_accepting"
    FULL = "full"
    RESERVED = "reserved"
    OUTDRAWN = "outdrawn"


PASSING: Final = frozenset({Cause.FULL, Cause.RESERVED})  # heal by waiting for seconds
RETRY_MS_MIN: Final = 100  # whoever comes back sooner only finds the same
FULL_RETRY_MS: Final = (500, 5_000)  # least and most: nobody knows when a job at work will end


@dataclass(frozen=True, slots=True)
class Request:
    """What a job needs; `prompt_bytes` bounds the prompt's tokens."""

    model_profile: ProfileDigest
    prompt_bytes: int
    max_tokens: int
    excluded: tuple[NodeId, ...] = ()


@dataclass(frozen=True, slots=True)
class NodeState:
    """An attached node as whoever ranks it knows it.

    `free_slots` is what the node last said, `reserved` how many of them are held for jobs about to
    be submitted, the first of them for `reserved_ms` more, `refusal` the reason a node that is not
    `accepting` states, `queue_ms` how long work waits there, `witnessed_tokens_per_s` what clients
    saw of this model (0 before the first job).
    """

    descriptor: NodeDescriptor
    node: NodeId
    free_slots: int
    reserved: int = 0
    reserved_ms: int = 0
    accepting: bool = True
    refusal: str = ""
    queue_ms: int = 0
    witnessed_tokens_per_s: float = 0.0
    jobs_settled: int = 0
    jobs_lost: int = 0

    @property
    def reliability(self) -> float:
        """Share of jobs it finished, 0 to 1; starts at 1/2 and moves with evidence."""
        return (self.jobs_settled + 1) / (self.jobs_settled + self.jobs_lost + 2)

    @property
    def new(self) -> bool:
        """Whether it still has to earn a record."""
        return self.jobs_settled < EXPLORED_JOBS

    def offer(self, profile: ProfileDigest) -> ModelOffer | None:
        """What it offers of a model, or None."""
        return next((m for m in self.descriptor.models if m.model_profile == profile), None)


@dataclass(frozen=True, slots=True)
class Ranked:
    """A node that was chosen; `score` is its share of the draw among all that passed, 0 to 1."""

    node: NodeId
    score: float
    reason: str


@dataclass(frozen=True, slots=True)
class Refused:
    """A node that was not chosen, and why not; `retry_ms` where waiting so long helps."""

    node: NodeId
    cause: Cause
    reason: str
    retry_ms: int = 0


@dataclass(frozen=True, slots=True)
class Ranking:
    """Chosen nodes in the order drawn; every other node with the reason it was not."""

    chosen: tuple[Ranked, ...]
    refused: tuple[Refused, ...]


@dataclass(frozen=True, slots=True)
class _Fit:
    """A node that passed every filter; `seconds` is the expected time of the job there."""

    state: NodeState
    seconds: float
    speed: str
    weight: float


def rank(request: Request, nodes: Iterable[NodeState], rng: random.Random, count: int) -> Ranking:
    """Choose at most `count` nodes for a job.

    The same request, nodes (in any order) and rng state give the same ranking.
    """
    ordered = sorted(nodes, key=lambda state: state.node)
    refused: list[Refused] = []
    passed: list[tuple[NodeState, ModelOffer]] = []
    for state in ordered:
        offer = state.offer(request.model_profile)
        refusal = _refuse(request, state, offer)
        if refusal is not None:
            refused.append(refusal)
            continue
        assert offer is not None  # whoever offers nothing was refused
        passed.append((state, offer))
    fits = _weigh(request, passed)
    chosen = _draw(fits, rng, count)
    total = sum(fit.weight for fit in fits)
    left = [fit for fit in fits if fit not in chosen]
    return Ranking(
        tuple(Ranked(fit.state.node, fit.weight / total, _praise(fit)) for fit in chosen),
        (*refused, *(_outdrawn(fit, chosen) for fit in left)),
    )


def unservable(ranking: Ranking, model: str = "this model") -> NovaMeshError | None:
    """The error for a ranking that chose nobody, or None where it chose somebody.

    MODEL_NOT_FOUND where nobody offers the model, BUSY with a retry time where waiting for seconds
    helps, else NO_CAPACITY with the reasons.
    """
    if ranking.chosen:
        return None
    offering = [r for r in ranking.refused if r.cause is not Cause.NO_MODEL]
    if not offering:
        return NovaMeshError(
            Code.MODEL_NOT_FOUND,
            f"no attached node offers {model}",
            "list what the pool serves: novamesh pool models",
        )
    reasons = _summary(offering)
    waits = [refused.retry_ms for refused in offering if refused.cause in PASSING]
    if waits:
        retry_ms = max(1, min(waits))
        hint = f"try again in {_seconds(retry_ms / 1000)}"
        return NovaMeshError(Code.BUSY, f"no node is free: {reasons}", hint, retry_ms)
    away = any(refused.cause is Cause.NOT_ACCEPTING for refused in offering)
    return NovaMeshError(
        Code.NO_CAPACITY,
        f"no node can take the job: {reasons}",
        "try again when one of them takes work again: novamesh pool models"
        if away
        else "shorten the prompt, ask for fewer tokens or exclude fewer nodes",
    )


def _refuse(request: Request, state: NodeState, offer: ModelOffer | None) -> Refused | None:
    """The first filter a node fails, or None."""
    tokens = math.ceil(request.prompt_bytes / BYTES_PER_TOKEN) + request.max_tokens
    free = state.free_slots
    if state.node in request.excluded:
        return Refused(state.node, Cause.EXCLUDED, "excluded by the client")
    if offer is None:
        return Refused(state.node, Cause.NO_MODEL, "does not offer the model")
    if tokens > offer.context_max:
        reason = f"the job needs about {tokens} tokens of context, it takes {offer.context_max}"
        return Refused(state.node, Cause.CONTEXT, reason)
    if not state.accepting:
        reason = f"takes no work: {state.refusal or 'it does not say why'}"
        return Refused(state.node, Cause.NOT_ACCEPTING, reason)
    if free > max(0, state.reserved):
        return None
    wait_ms = _wait_ms(request, state, offer)
    if free <= 0:
        slots = state.descriptor.slots
        return Refused(state.node, Cause.FULL, f"all {slots} slots are busy", wait_ms)
    reason = f"its free slots ({free}) are reserved for jobs about to be submitted"
    # Most become jobs within milliseconds, and jobs end; the others are let go.
    return Refused(
        state.node, Cause.RESERVED, reason, max(RETRY_MS_MIN, min(wait_ms, state.reserved_ms))
    )


def _wait_ms(request: Request, state: NodeState, offer: ModelOffer) -> int:
    """About when a slot will be free, if the jobs at work are like this one."""
    like_this = _fit(request, state, offer, state.witnessed_tokens_per_s).seconds
    least, most = FULL_RETRY_MS
    return round(min(max(like_this * 1000 / max(1, state.descriptor.slots), least), most))


def _weigh(request: Request, passed: Sequence[tuple[NodeState, ModelOffer]]) -> list[_Fit]:
    """Expected time and weight of every node that passed."""
    ceiling = max((state.witnessed_tokens_per_s for state, _ in passed), default=0.0)
    fits = [_fit(request, state, offer, ceiling) for state, offer in passed]
    known = sum(fit.weight for fit in fits if not fit.state.new)
    fresh = sum(fit.weight for fit in fits if fit.state.new)
    if not known or not fresh:
        return fits
    # However many identities somebody makes, new ones never get more than their share together.
    factor = known * EXPLORATION_SHARE / (1 - EXPLORATION_SHARE) / fresh
    return [replace(fit, weight=fit.weight * factor) if fit.state.new else fit for fit in fits]


def _fit(request: Request, state: NodeState, offer: ModelOffer, ceiling: float) -> _Fit:
    decode, speed = _decode_speed(state, offer, ceiling)
    prompt_tokens = request.prompt_bytes / BYTES_PER_TOKEN
    prefill = min(max(offer.prefill_tokens_per_s, decode), decode * PREFILL_PER_DECODE_MAX)
    seconds = state.queue_ms / 1000 + prompt_tokens / prefill + request.max_tokens / decode
    seconds = max(seconds, SECONDS_MIN)
    return _Fit(state, seconds, speed, state.reliability / seconds**SPEED_EXPONENT)


def _decode_speed(state: NodeState, offer: ModelOffer, ceiling: float) -> tuple[float, str]:
    """Tokens a second to reckon with, and where that number comes from."""
    witnessed, claimed = state.witnessed_tokens_per_s, offer.decode_tokens_per_s
    if witnessed > 0:
        return max(witnessed, TOKENS_PER_S_MIN), f"{_number(witnessed)} tokens/s witnessed"
    if claimed <= 0:
        return UNKNOWN_TOKENS_PER_S, "speed unknown"
    believed = min(claimed, ceiling) if ceiling > 0 else claimed
    return max(believed, TOKENS_PER_S_MIN), f"{_number(claimed)} tokens/s claimed"


def _draw(fits: Sequence[_Fit], rng: random.Random, count: int) -> list[_Fit]:
    """Draw without putting back, each time in proportion to the weights left."""
    left = list(fits)
    drawn: list[_Fit] = []
    while left and len(drawn) < count:
        drawn.append(rng.choices(left, weights=[fit.weight for fit in left])[0])
        left.remove(drawn[-1])
    return drawn


def _praise(fit: _Fit) -> str:
    state = fit.state
    free = state.free_slots - state.reserved
    record = "new here" if state.new else f"finished {state.reliability:.0%} of its jobs"
    slots = f"{free} of {state.descriptor.slots} slots free"
    return f"about {_seconds(fit.seconds)}: {fit.speed}, {slots}, {record}"


def _outdrawn(fit: _Fit, chosen: Sequence[_Fit]) -> Refused:
    best = min((other.seconds for other in chosen), default=0.0)
    reason = (
        f"others were drawn: about {_seconds(best)} there, {_seconds(fit.seconds)} here"
        if chosen
        else "nobody was asked for"
    )
    return Refused(fit.state.node, Cause.OUTDRAWN, reason)


def _seconds(seconds: float) -> str:
    return f"{_number(seconds)} s"


def _number(value: float) -> str:
    return f"{value:.2g}" if value < 10 else f"{value:.0f}"


def _summary(refused: Sequence[Refused], shown: int = 3) -> str:
    """The most frequent reasons, at most `shown` of them."""
    counts: dict[str, int] = {}
    for entry in refused:
        counts[entry.reason] = counts.get(entry.reason, 0) + 1
    most = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:shown]
    return "; ".join(f"{reason} ({number})" for reason, number in most)
