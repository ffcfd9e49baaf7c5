"""The node's folder: one process, numbers that never come twice, damage that costs little."""

from __future__ import annotations

import multiprocessing
import stat
from pathlib import Path

import pytest

from novamesh_node.state import SPEEDS_MAX, NodeState
from novamesh_proto.errors import Code, NovaMeshError


def _hold(folder: str, ready: object, done: object) -> None:
    NodeState(Path(folder)).lock()
    ready.set()  # type: ignore[attr-defined]
    done.wait(20)  # type: ignore[attr-defined]


def test_a_second_process_is_refused_and_a_killed_one_lets_go(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    ready, done = spawn.Event(), spawn.Event()
    other = spawn.Process(target=_hold, args=(str(tmp_path), ready, done))
    other.start()
    try:
        assert ready.wait(20)
        with pytest.raises(NovaMeshError) as caught:
            NodeState(tmp_path).lock()
        assert caught.value.code is Code.CONFLICT
        assert str(other.pid) in caught.value.message
        assert "novamesh node stop" in caught.value.hint
    finally:
        other.kill()
        other.join()
    state = NodeState(tmp_path)
    state.lock()
    state.unlock()
    state.unlock()


def test_a_folder_that_cannot_be_used_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NovaMeshError) as caught:
        NodeState(tmp_path / "file" / "node").lock()
    assert caught.value.code is Code.STORAGE


def test_a_sequence_never_comes_twice(tmp_path: Path) -> None:
    assert NodeState(tmp_path).next_sequence(100) == 100
    assert NodeState(tmp_path).next_sequence(50) == 101
    assert NodeState(tmp_path).next_sequence(1000) == 1000
    (tmp_path / "sequence").write_text("{]")
    assert NodeState(tmp_path).next_sequence(2000) == 2000


def test_a_pause_is_remembered(tmp_path: Path) -> None:
    state = NodeState(tmp_path)
    assert state.pause() == (False, 0)
    state.save_pause(True, 77)
    assert NodeState(tmp_path).pause() == (True, 77)
    state.save_pause(False)
    state.save_pause(False)
    assert state.pause() == (False, 0)


def test_speeds_are_remembered_and_bounded(tmp_path: Path) -> None:
    state = NodeState(tmp_path)
    assert state.speed("m") is None
    for number in range(SPEEDS_MAX + 1):
        state.save_speed(f"m{number}", number, 2.0)
    assert NodeState(tmp_path).speed(f"m{SPEEDS_MAX}") == (SPEEDS_MAX, 2.0)
    assert NodeState(tmp_path).speed("m1") == (1.0, 2.0)
    assert state.speed("m0") is None


def test_the_best_bandwidth_is_remembered(tmp_path: Path) -> None:
    assert NodeState(tmp_path).best_bandwidth("cpu 1", 10) == 10
    assert NodeState(tmp_path).best_bandwidth("cpu 1", 7) == 10
    assert NodeState(tmp_path).best_bandwidth("cpu 2", 5) == 5
    assert NodeState(tmp_path).best_bandwidth("cpu 1", 12) == 12


@pytest.mark.parametrize(
    "damage", ["", "[]", '{"m": [1]}', '{"m": ["a", "b"]}', "9" * 10, "[" * 9999]
)
def test_damage_costs_what_it_held_and_no_more(tmp_path: Path, damage: str) -> None:
    (tmp_path / "speeds").write_text(damage)
    (tmp_path / "pause").write_text(damage)
    state = NodeState(tmp_path)
    assert state.speed("m") is None
    assert state.pause()[1] == 0
    state.save_speed("m", 1.0, 2.0)
    assert state.speed("m") == (1.0, 2.0)


def test_files_are_nobody_elses(tmp_path: Path) -> None:
    state = NodeState(tmp_path / "node")
    state.lock()
    state.next_sequence(1)
    state.unlock()
    assert stat.S_IMODE((tmp_path / "node").stat().st_mode) == 0o700
    for path in (tmp_path / "node").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
