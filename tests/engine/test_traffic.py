"""Any order of submitting, stepping, failing, shedding and aborting on a whole engine.

The decoder answers from what it finds in the cache, so each answer is known beforehand: whatever
happened around it, what came is the beginning of that, and it ends exactly once.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from novamesh_engine.errors import MemoryShortError, QueueFullError
from novamesh_engine.request import FinishReason, Request, SamplingParams, StepOutput
from novamesh_engine.tokenizer import Tokenizer
from support.summing_decoder import SummingDecoder, continued
from support.tiny_engine import engine_around, small_config
from support.tiny_tokenizer import VOCAB, tiny_tokenizer

CONTEXT = 40
SCOPES = (b"", b"a", b"a", b"b")
TOKENIZER: dict[str, Tokenizer] = {}


@pytest.fixture(scope="module", autouse=True)
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> None:
    TOKENIZER["tiny"] = tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


class Traffic(RuleBasedStateMachine):
    """One small engine whose requests' answers are known."""

    def __init__(self) -> None:
        super().__init__()
        self.wanted: dict[str, list[int]] = {}  # tokens still to come
        self.count = 0
        self.shed = 0

    @initialize(
        blocks=st.integers(3, 14), running=st.integers(1, 4), extra=st.integers(0, 12),
        enabled=st.sampled_from([True, True, False]),
    )  # fmt: skip
    def start(self, blocks: int, running: int, extra: int, enabled: bool) -> None:
        config = small_config(
            kv_bytes_max=blocks * 4 * 16, max_running=running, max_waiting=3,
            max_step_tokens=running + extra, prefix_cache=enabled,
        )  # fmt: skip
        self.decoder = SummingDecoder(VOCAB, config.block_size)
        self.engine = engine_around(self.decoder, TOKENIZER["tiny"], config, CONTEXT)

    @rule(
        same=st.integers(0, 24), other=st.lists(st.integers(7, 9), min_size=1, max_size=8),
        most=st.integers(1, 20), prefix=st.integers(0, 20), scope=st.sampled_from(SCOPES),
    )  # fmt: skip
    def submit(self, same: int, other: list[int], most: int, prefix: int, scope: bytes) -> None:
        context = self.engine.max_context
        prompt = ((7,) * same + tuple(other))[: context - 1]
        answer = continued(prompt, min(most, context - len(prompt)))
        received = tuple(answer[: min(prefix, len(answer))])
        sampling = SamplingParams(max_tokens=most, ignore_eos=True)
        request = Request(f"r{self.count}", prompt, sampling, received, scope)
        try:
            self.engine.submit(request)
        except QueueFullError:
            return
        self.count += 1
        self.wanted[request.id] = answer[len(received) :]

    @rule()
    def step(self) -> None:
        for output in self.engine.step():
            self._take(output)

    @precondition(lambda self: self.engine.stats().running + self.engine.stats().waiting)
    @rule()
    def fail(self) -> None:
        """A step raises: nothing may have changed."""
        self.decoder.faults.append(RuntimeError("a kernel failed"))
        before = self.engine.stats().generated_tokens
        with pytest.raises(RuntimeError, match="a kernel failed"):
            self.engine.step()
        assert self.engine.stats().generated_tokens == before

    @rule(times=st.integers(1, 3))
    def run_short(self, times: int) -> None:
        """Memory runs out: the newest go, one after the other, and the rest goes on."""
        stats = self.engine.stats()
        times = min(times, stats.running + stats.waiting)
        self.decoder.faults += [MemoryError()] * times
        outputs = self.engine.step()
        assert not self.decoder.faults
        assert sum(isinstance(one.error, MemoryShortError) for one in outputs) == times
        for output in outputs:
            self._take(output)

    def _take(self, output: StepOutput) -> None:
        left = self.wanted[output.request_id]
        count = len(output.token_ids)
        assert list(output.token_ids) == left[:count]
        del left[:count]
        assert (output.error is None) == (output.finish is not FinishReason.ERROR)
        if output.finish is None:
            assert count == 1
            assert left
            return
        assert output.timing is not None
        if output.finish is FinishReason.LENGTH:
            assert not left
        elif output.finish is FinishReason.ERROR:
            self.shed += 1
        else:
            assert output.finish is FinishReason.ABORTED
        del self.wanted[output.request_id]  # a second ending would not find it

    @precondition(lambda self: self.wanted)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.wanted)))
        self.engine.abort(name)

    @invariant()
    def books_agree(self) -> None:
        if hasattr(self, "engine"):
            self.engine.check_integrity()
            assert self.engine.has_work == bool(self.wanted)
            assert self.engine.stats().shed == self.shed

    def teardown(self) -> None:
        """Whatever happened, everything ends, and every block comes home."""
        if not hasattr(self, "engine"):
            return
        for _ in range(2000):
            if not self.engine.has_work:
                break
            self.step()
        stats = self.engine.stats()
        assert not self.wanted
        assert stats.blocks_free == stats.blocks_total
        assert stats.finished <= self.count


Traffic.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestTraffic: Any = Traffic.TestCase
