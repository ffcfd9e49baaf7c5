"""What goes into the engine and what comes out: plain values, checked where they are made.

Rules: tokens and text only; no job, no user, no network. `max_tokens` counts the whole completion,
a forced prefix included, so a continued answer ends where the uninterrupted one does. Positions are
completion positions: 1 after the first completion token. No torch here.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from novamesh_engine.errors import RequestError
from novamesh_proto.errors import NovaMeshError

SEED_BYTES: Final = 32
MAX_TOKENS_MAX: Final = 1 << 20
STOPS_MAX: Final = 16
STOP_CHARS_MAX: Final = 256
STOP_IDS_MAX: Final = 64
LOGPROBS_MAX: Final = 20
TOP_K_MAX: Final = 64
ID_CHARS_MAX: Final = 256
SCOPE_BYTES_MAX: Final = 64


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen and when an answer ends.

    max_tokens           completion tokens in all, a forced prefix included
    temperature          0 takes the likeliest token; noise plays no part then
    top_k                candidates kept, 0 = all 64
    top_p, min_p         smallest set of that probability; share of the likeliest token's
    repetition_penalty   divides (or multiplies, below zero) the logit of a token already seen
    seed                 32 bytes; the same seed, model and prompt give the same answer
    stop                 strings that end the answer and are not part of it
    stop_token_ids       tokens that end the answer, beside the model's own end
    logprobs             how many alternatives to report for each token, 0 = report nothing
    ignore_eos           go on past the model's own end

    Raises: RequestError (bad_request) naming the field that is out of range.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: bytes = bytes(SEED_BYTES)
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    logprobs: int = 0
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if not low <= value <= high:  # NaN fails both comparisons
                message = f"{name} is {value}, not within {low:g} and {high:g}"
                raise RequestError(message, f"choose {name} between {low:g} and {high:g}")
        if len(self.seed) != SEED_BYTES:
            message = f"seed has {len(self.seed)} bytes, not {SEED_BYTES}"
            raise RequestError(message, "derive 32 bytes from whatever the seed is")
        if len(self.stop) > STOPS_MAX or len(self.stop_token_ids) > STOP_IDS_MAX:
            message = f"more than {STOPS_MAX} stop strings or {STOP_IDS_MAX} stop tokens"
            raise RequestError(message, "give fewer")
        if any(not 1 <= len(text) <= STOP_CHARS_MAX for text in self.stop):
            message = f"a stop string is empty or longer than {STOP_CHARS_MAX} characters"
            raise RequestError(message, "drop it or shorten it")


_RANGES: Final[tuple[tuple[str, float, float], ...]] = (
    ("max_tokens", 1, MAX_TOKENS_MAX),
    ("temperature", 0.0, 100.0),
    ("top_k", 0, TOP_K_MAX),
    ("top_p", 1e-6, 1.0),
    ("min_p", 0.0, 1.0),
    ("repetition_penalty", 0.01, 100.0),
    ("logprobs", 0, LOGPROBS_MAX),
)


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt to answer. `prefix` holds completion tokens that the client already received.

    What was computed for a request is reused for later ones of the same `cache_scope`, which can
    tell by the time it saves; an empty scope shares with nobody.
    Raises: RequestError (bad_request) for an empty prompt, a bad id or a scope that is too long.
    """

    id: str
    prompt: tuple[int, ...]
    sampling: SamplingParams
    prefix: tuple[int, ...] = ()
    cache_scope: bytes = b""

    def __post_init__(self) -> None:
        if not 1 <= len(self.id) <= ID_CHARS_MAX:
            message = f"a request id has {len(self.id)} characters, not 1 to {ID_CHARS_MAX}"
            raise RequestError(message, "choose another id")
        if not self.prompt:
            raise RequestError("the prompt is empty", "send at least one token")
        if len(self.cache_scope) > SCOPE_BYTES_MAX:
            message = f"a cache scope has {len(self.cache_scope)} bytes, over {SCOPE_BYTES_MAX}"
            raise RequestError(message, "name the scope by a digest")


class FinishReason(StrEnum):
    """Why an answer ended; the values are OpenAI's where it has them."""

    STOP = "stop"
    LENGTH = "length"
    ABORTED = "aborted"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural log probability of a chosen token under the unmodified logits, and the likeliest."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Timing:
    """Where a request's time went, microseconds on one monotonic clock.

    queue + prefill + decode = total. Prefill ends with the first new token, which `ttft_us` counts
    from submission; it is 0 when no token came.
    """

    queue_us: int
    prefill_us: int
    decode_us: int
    ttft_us: int
    total_us: int


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What one step added to one answer.

    `text` is whole characters only and never the start of what may become a stop string, so it can
    lag behind `token_ids`; `position` counts completion tokens so far, a forced prefix included.
    The last output of a request carries `finish` and `timing`; it may carry no token. With
    FinishReason.ERROR, and only then, `error` says why and what to do.
    """

    request_id: str
    token_ids: tuple[int, ...]
    text: str
    position: int
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: FinishReason | None = None
    timing: Timing | None = None
    error: NovaMeshError | None = None
