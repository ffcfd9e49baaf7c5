"""One request on its way through the engine: its tokens, its pages, its marks in time.

Rules: `tokens` is prompt + forced prefix + what was generated, and only grows; `computed` says how
many of them have keys and values in the cache. Counts are computed, never stored twice. Which queue
a sequence is in is the scheduler's to know. No torch, no policy.
"""

from __future__ import annotations

from novamesh_engine.request import Request, SamplingParams, Timing


class Sequence:
    """The mutable state of one request; `arrival` orders sequences, times are nanoseconds."""

    __slots__ = ("admitted_ns", "arrival", "blocks", "computed", "first_token_ns", "id", "names",
                 "prompt_count", "regime", "sampling", "scope", "submitted_ns",
                 "tokens")  # fmt: skip

    def __init__(self, request: Request, arrival: int, now_ns: int, regime: int = 0) -> None:
        self.id = request.id
        self.sampling: SamplingParams = request.sampling
        self.scope = request.cache_scope
        self.regime = regime  # keys of equal tokens differ between regimes of the rotary angles
        self.arrival = arrival
        self.prompt_count = len(request.prompt)
        self.tokens = [*request.prompt, *request.prefix]
        self.computed = 0
        self.blocks: list[int] = []
        self.names: list[bytes] = []  # of its full blocks, as far as the prefix cache asked
        self.submitted_ns = now_ns
        self.admitted_ns: int | None = None
        self.first_token_ns: int | None = None

    @property
    def position(self) -> int:
        """Completion tokens so far, a forced prefix included."""
        return len(self.tokens) - self.prompt_count

    @property
    def pending(self) -> int:
        """Tokens still without keys and values: 1 while decoding, more while prefilling."""
        return len(self.tokens) - self.computed

    def admit(self, now_ns: int) -> None:
        """Mark the first step this sequence takes part in; later calls change nothing."""
        if self.admitted_ns is None:
            self.admitted_ns = now_ns

    def append(self, token_id: int, now_ns: int) -> None:
        """Add one generated token."""
        self.tokens.append(token_id)
        if self.first_token_ns is None:
            self.first_token_ns = now_ns

    def timing(self, now_ns: int) -> Timing:
        """Where the time went if the request ends now."""
        admitted = now_ns if self.admitted_ns is None else self.admitted_ns
        first = now_ns if self.first_token_ns is None else self.first_token_ns
        # Marks are rounded before they are subtracted, so that the three parts add up exactly.
        start, begun, spoke, end = (
            mark // 1000 for mark in (self.submitted_ns, admitted, first, now_ns)
        )
        return Timing(
            queue_us=begun - start,
            prefill_us=spoke - begun,
            decode_us=end - spoke,
            ttft_us=0 if self.first_token_ns is None else spoke - start,
            total_us=end - start,
        )
