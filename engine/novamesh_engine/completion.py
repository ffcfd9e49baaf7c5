"""One growing answer: tokens in, whole characters out, and when it is over.

Rules: what was emitted after n tokens is a function of those tokens alone, so feeding a forced
prefix brings a continued answer to the very state the interrupted one had. A character leaves only
when its last byte is there; text that may become a stop string is held until it cannot. A stop
string is cut off, with everything behind it; a character that an ending leaves unfinished is
dropped. It does not choose tokens.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable

from novamesh_engine.request import FinishReason, SamplingParams


class StopScanner:
    """Passes text through up to the first stop string."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Text that may leave now, and whether a stop string ended it."""
        self._held += text
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            return self._take(min(found)), True
        return self._take(len(self._held) - self._doubtful()), False

    def flush(self) -> str:
        """What was held, when nothing more comes."""
        return self._take(len(self._held))

    def _take(self, count: int) -> str:
        taken, self._held = self._held[:count], self._held[count:]
        return taken

    def _doubtful(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for size in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-size:]) for stop in self._stops):
                return size
        return 0


class Completion:
    """The text and the end of one answer.

    `token_bytes` gives a token's bytes, `end_ids` are the model's own end tokens, and `room` is how
    many completion tokens fit behind the prompt.
    """

    def __init__(
        self,
        token_bytes: Callable[[int], bytes],
        sampling: SamplingParams,
        end_ids: tuple[int, ...],
        room: int,
    ) -> None:
        self._token_bytes = token_bytes
        self._characters = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._scanner = StopScanner(sampling.stop)
        self._end_ids = frozenset(sampling.stop_token_ids)
        if not sampling.ignore_eos:
            self._end_ids |= frozenset(end_ids)
        self._left = min(sampling.max_tokens, room)

    def accept(self, token_id: int) -> tuple[str, FinishReason | None]:
        """Add a token: the text that leaves now, and why the answer is over if it is."""
        self._left -= 1
        if token_id in self._end_ids:
            return self._scanner.flush(), FinishReason.STOP
        text, stopped = self._scanner.push(self._characters.decode(self._token_bytes(token_id)))
        if stopped:
            return text, FinishReason.STOP
        if self._left <= 0:
            return text + self._scanner.flush(), FinishReason.LENGTH
        return text, None
