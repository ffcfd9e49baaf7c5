"""Recordings are made once for a key, replayed on what is given, and the oldest one goes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from novamesh_engine.kernels.graphs import RECORDINGS_MAX, Graphs, Recording, Work
from support.replays import Replays


def work(x: Tensor, buffer: Tensor) -> Tensor:
    return x * 2 + buffer


def given(value: float) -> tuple[Tensor, Tensor]:
    return torch.full((2,), value), torch.full((2,), 3, dtype=torch.int32)


def test_a_replay_is_of_what_is_given() -> None:
    record = Replays()
    graphs = Graphs(record)
    first = graphs.run("one", work, *given(1.0))
    assert first.tolist() == [5, 5]
    again = graphs.run("one", work, *given(4.0))
    assert again.tolist() == [11, 11]
    assert again is first  # overwritten, as the rules say
    assert (len(record.recorded), record.replayed) == (1, 2)


def test_what_is_recorded_is_not_the_caller_s_memory() -> None:
    graphs, (x, buffer) = Graphs(Replays()), given(1.0)
    graphs.run("one", work, x, buffer)
    graphs.run("one", work, *given(9.0))
    assert x.tolist() == [1, 1]


def test_each_key_has_a_recording() -> None:
    record = Replays()
    graphs = Graphs(record)
    one = graphs.run((1, 16), work, *given(1.0))
    two = graphs.run((1, 32), work, *given(2.0))
    assert one.tolist() == [5, 5]
    assert two.tolist() == [7, 7]
    assert len(record.recorded) == 2


def test_the_one_not_used_for_longest_goes() -> None:
    record = Replays()
    graphs = Graphs(record)
    for key in range(RECORDINGS_MAX):
        graphs.run(key, work, *given(key))
    graphs.run(0, work, *given(0))
    graphs.run("one more", work, *given(0))  # 1 goes, not 0
    assert len(record.recorded) == RECORDINGS_MAX + 1
    for key in (0, 2, RECORDINGS_MAX - 1, "one more"):
        graphs.run(key, work, *given(0))
    assert len(record.recorded) == RECORDINGS_MAX + 1
    graphs.run(1, work, *given(0))
    assert len(record.recorded) == RECORDINGS_MAX + 2


def test_forgetting_drops_all() -> None:
    record = Replays()
    graphs = Graphs(record)
    graphs.run("one", work, *given(1.0))
    graphs.forget()
    graphs.run("one", work, *given(1.0))
    assert len(record.recorded) == 2


def test_what_could_not_be_recorded_is_not_kept() -> None:
    graphs, tries = Graphs(Replays()), []

    def fails_once(x: Tensor, buffer: Tensor) -> Tensor:
        tries.append(x)
        if len(tries) == 1:
            raise MemoryError("no room for a graph")
        return work(x, buffer)

    with pytest.raises(MemoryError):
        graphs.run("one", fails_once, *given(1.0))
    assert graphs.run("one", fails_once, *given(1.0)).tolist() == [5, 5]


def test_where_recording_fails_every_step_is_launched_and_it_is_said_why() -> None:
    tried: list[str] = []

    def fail(work: Work, x: Tensor, buffer: Tensor) -> Recording:
        tried.append("record")
        raise RuntimeError("operation not permitted when stream is capturing")

    graphs = Graphs(fail)
    assert graphs.broken == ""
    for value in (1.0, 4.0):
        assert graphs.run("one", work, *given(value)).tolist() == [2 * value + 3] * 2
    assert tried == ["record"]
    assert "stream is capturing" in graphs.broken


def test_a_recording_without_memory_is_shed_like_any_step() -> None:
    def fail(work: Work, x: Tensor, buffer: Tensor) -> Recording:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    graphs = Graphs(fail)
    with pytest.raises(torch.OutOfMemoryError):
        graphs.run("one", work, *given(1.0))
    assert graphs.broken == ""
