"""Hostile bytes at every way in: refused with an error of ours, or taken; never anything else."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from novamesh_proto.errors import NovaMeshError
from support.fuzz.corpus import entries
from support.fuzz.edits import edit
from support.fuzz.target import Target
from support.fuzz.targets import targets

EXAMPLES = 2_000
TARGETS = targets()
METHODS = {
    "hello", "join", "listmodels", "match", "submit", "watch", "acknowledge", "submitreceipt",
    "cancel", "getjob", "listjobs", "listnodes", "ban", "attach",
}  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn, target: Target) -> bytes:
    """A sample with up to four edits; the first sample more often than the others."""
    data = draw(st.sampled_from((target.samples[0], *target.samples)))
    for seed in draw(st.lists(st.integers(0, 2**32 - 1), max_size=4)):
        data = edit(data, target.shape, seed)
    return data


@pytest.mark.parametrize("name", TARGETS)
def test_every_sample_is_taken(name: str) -> None:
    """Or the edits would try nothing but the first check."""
    for sample in TARGETS[name].samples:
        TARGETS[name].feed(sample)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", TARGETS)
def test_whatever_comes_is_taken_or_refused(name: str) -> None:
    target = TARGETS[name]

    @settings(
        max_examples=EXAMPLES, deadline=None, database=None,
        suppress_health_check=list(HealthCheck), phases=(Phase.generate, Phase.shrink),
    )  # fmt: skip
    @given(data=damaged(target))
    def feed(data: bytes) -> None:
        with contextlib.suppress(NovaMeshError):
            target.feed(data)

    feed()
    target.close()


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_is_taken_or_refused(name: str) -> None:
    """What longer runs found worth keeping."""
    target = TARGETS[name]
    found = entries(name)
    assert found, f"no corpus for {name}: make fuzz"
    for path in found:
        with contextlib.suppress(NovaMeshError):
            target.feed(path.read_bytes())
    target.close()


def test_no_method_is_left_out() -> None:
    assert set(TARGETS) >= METHODS
