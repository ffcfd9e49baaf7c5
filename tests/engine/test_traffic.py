"""Any order of submitting, stepping, failing and aborting on a whole engine (a state machine).

The scripted model wants one token at each absolute position, so each answer is known beforehand:
whatever happened around it, it is a prefix of that, and it ends exactly once.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from novamesh_engine.errors import QueueFullError
from novamesh_engine.request import FinishReason, Request, SamplingParams, StepOutput
from novamesh_engine.tokenizer import Tokenizer
from support.tiny_engine import scripted_engine
from support.tiny_tokenizer import tiny_tokenizer

CONTEXT = 40
SCRIPT = {position: 5 + position * 3 % 200 for position in range(CONTEXT + 1)}
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

    @initialize(
        blocks=st.integers(3, 14), running=st.integers(1, 4), extra=st.integers(0, 12),
        failures=st.integers(0, 2),
    )  # fmt: skip
    def start(self, blocks: int, running: int, extra: int, failures: int) -> None:
        self.engine = scripted_engine(
            TOKENIZER["tiny"], SCRIPT, failures=failures, max_context=CONTEXT,
            kv_bytes_max=blocks * 4 * 16, max_running=running, max_waiting=3,
            max_step_tokens=running + extra,
        )  # fmt: skip

    @rule(prompt=st.integers(1, 30), most=st.integers(1, 20), prefix=st.integers(0, 20))
    def submit(self, prompt: int, most: int, prefix: int) -> None:
        context = self.engine.max_context
        prompt = min(prompt, context - 1)
        answer = [SCRIPT[at] for at in range(prompt, min(prompt + most, context))]
        received = tuple(answer[: min(prefix, len(answer))])
        sampling = SamplingParams(max_tokens=most, ignore_eos=True)
        request = Request(f"r{self.count}", (3,) * prompt, sampling, received)
        try:
            self.engine.submit(request)
        except QueueFullError:
            return
        self.count += 1
        self.wanted[request.id] = answer[len(received) :]

    @rule()
    def step(self) -> None:
        try:
            outputs = self.engine.step()
        except RuntimeError:  # the scripted failure: nothing may have changed
            return
        for output in outputs:
            self._take(output)

    def _take(self, output: StepOutput) -> None:
        left = self.wanted[output.request_id]
        count = len(output.token_ids)
        assert list(output.token_ids) == left[:count]
        del left[:count]
        if output.finish is None:
            assert count == 1
            assert left
            return
        assert output.timing is not None
        assert output.finish is FinishReason.ABORTED or not left
        del self.wanted[output.request_id]  # a second ending would not find it

    @precondition(lambda self: self.wanted)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        self.engine.abort(data.draw(st.sampled_from(sorted(self.wanted))))

    @invariant()
    def books_agree(self) -> None:
        if hasattr(self, "engine"):
            self.engine.check_integrity()
            assert self.engine.has_work == bool(self.wanted)

    def teardown(self) -> None:
        """Everything ends, and every block comes home."""
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
