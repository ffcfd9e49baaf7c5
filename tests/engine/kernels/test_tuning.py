"""Cuts are measured once for a kernel and shape, kept in a file, and never trusted blindly."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest
from triton.runtime.errors import OutOfResources

from novamesh_engine.kernels import tuning
from novamesh_engine.kernels.tuning import CUTS, Cut, Tuning, tuning_file

SHAPE = (4096, 1024)
CANDIDATES = CUTS["rows", 1]


@dataclass
class Clock:
    """Runs what it times, and says what a cut is said to take."""

    takes_ms: dict[Cut, float] = field(default_factory=dict)
    fails: set[Cut] = field(default_factory=set)
    tried: list[Cut] = field(default_factory=list)

    def run(self, cut: Cut) -> None:
        self.tried.append(cut)
        if cut in self.fails:
            raise OutOfResources(2, 1, "shared memory")

    def __call__(self, run: Callable[[], None]) -> float:
        run()
        return self.takes_ms.get(self.tried[-1], 1.0)


def ask(tuning: Tuning, clock: Clock, kernel: str = "rows", tokens: int = 1) -> Cut:
    return tuning.cut(kernel, SHAPE, tokens, clock.run)


def test_without_a_timer_the_default_is_taken() -> None:
    clock = Clock()
    for (kernel, tokens), candidates in CUTS.items():
        assert ask(Tuning(), clock, kernel, tokens) == candidates[0]
    assert clock.tried == []


def test_a_launch_is_named_as_triton_does() -> None:
    assert Cut(8, 4, 2, 3).launch == {"num_warps": 2, "num_stages": 3}


@pytest.mark.parametrize("fastest", CANDIDATES)
def test_the_fastest_is_taken_and_measured_once(fastest: Cut) -> None:
    clock = Clock({fastest: 0.1})
    known = Tuning(None, clock)
    assert ask(known, clock) == fastest
    assert clock.tried == list(CANDIDATES)
    assert ask(known, clock) == fastest
    assert len(clock.tried) == len(CANDIDATES)
    known.cut("rows", (1, 2), 1, clock.run)
    assert len(clock.tried) == 2 * len(CANDIDATES)  # another shape is another question


def test_equally_fast_is_the_default() -> None:
    clock = Clock()
    assert ask(Tuning(None, clock), clock) == CANDIDATES[0]


def test_one_candidate_is_not_measured() -> None:
    clock = Clock()
    alone = {("rows", 1): CANDIDATES[:1]}
    assert ask(Tuning(None, clock, alone), clock) == CANDIDATES[0]
    assert clock.tried == []


def test_a_cut_that_the_device_refuses_loses() -> None:
    clock = Clock({CANDIDATES[0]: 0.1, CANDIDATES[1]: 0.5, CANDIDATES[2]: 0.4}, {CANDIDATES[0]})
    assert ask(Tuning(None, clock), clock) == CANDIDATES[2]
    clock = Clock(fails=set(CANDIDATES))
    known = Tuning(None, clock)
    assert ask(known, clock) == CANDIDATES[0]  # which then says what is wrong
    clock.fails.clear()
    assert ask(known, clock) == CANDIDATES[0]
    assert len(clock.tried) == 2 * len(CANDIDATES), "a failure is not remembered"


def test_another_error_is_not_swallowed() -> None:
    def broken(cut: Cut) -> None:
        raise ValueError(f"a bug of ours: {cut}")

    with pytest.raises(ValueError, match="a bug of ours"):
        Tuning(None, Clock()).cut("rows", SHAPE, 1, broken)


def test_what_was_measured_outlives_the_process(tmp_path: Path) -> None:
    file, clock = tmp_path / "new" / "card.json", Clock({CANDIDATES[1]: 0.1})
    first = Tuning(file, clock)
    assert ask(first, clock) == CANDIDATES[1]
    first.cut("tile", SHAPE, 64, clock.run)
    assert [path.name for path in file.parent.iterdir()] == ["card.json"]  # nothing half written
    assert len(json.loads(file.read_text())) == 2
    for timer in (None, clock):
        clock.tried.clear()
        assert ask(Tuning(file, timer), clock) == CANDIDATES[1]
        assert clock.tried == []


GOOD = {"rows 1 4096x1024": asdict(CANDIDATES[1])}
DAMAGED = {
    "empty": b"",
    "cut off": json.dumps(GOOD).encode()[:-3],
    "no object": b"[1, 2]",
    "no cut": b'{"rows 1 4096x1024": 7}',
    "a field too many": json.dumps({"rows 1 4096x1024": asdict(CANDIDATES[1]) | {"x": 1}}).encode(),
    "a field too few": b'{"rows 1 4096x1024": {"rows": 4}}',
    "no text": b"\xff\xfe\x00",
    "deep": b"[" * 100_000,
    "too long": json.dumps(GOOD | {"rows 1 1": "x" * (1 << 20)}).encode(),
    "not a candidate": json.dumps({"rows 1 4096x1024": asdict(Cut(1 << 20, 1, 1))}).encode(),
    "not numbers": b'{"rows 1 4096x1024": {"rows": "8", "groups": [], "warps": null}}',
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_file_is_as_good_as_none(tmp_path: Path, content: bytes) -> None:
    file, clock = tmp_path / "card.json", Clock({CANDIDATES[2]: 0.1})
    file.write_bytes(content)
    assert ask(Tuning(file), clock) == CANDIDATES[0]
    assert ask(Tuning(file, clock), clock) == CANDIDATES[2]
    assert ask(Tuning(file), clock) == CANDIDATES[2]  # and it is written anew


def test_a_cut_of_another_kernel_is_not_taken(tmp_path: Path) -> None:
    file, other = tmp_path / "card.json", CUTS["tile", 64][1]
    file.write_text(json.dumps({"rows 1 4096x1024": asdict(other)}))
    assert ask(Tuning(file), Clock()) == CANDIDATES[0]


def test_a_folder_that_cannot_be_written_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    clock = Clock({CANDIDATES[1]: 0.1})
    known = Tuning(tmp_path / "file" / "card.json", clock)
    assert ask(known, clock) == CANDIDATES[1]
    assert ask(known, clock) == CANDIDATES[1]
    assert len(clock.tried) == len(CANDIDATES)


def test_a_file_has_a_largest_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "CHOICES_MAX", 2)
    file, clock = tmp_path / "card.json", Clock({CANDIDATES[1]: 0.1})
    known = Tuning(file, clock)
    for rows in range(4):
        found = known.cut("rows", (rows,), 1, clock.run)
        assert found == CANDIDATES[1 if rows < 2 else 0]  # there is no room to remember more
    assert len(json.loads(file.read_text())) == 2


def test_files_are_of_one_device_and_of_these_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = tuning_file(tmp_path, "NVIDIA GeForce RTX 3060")
    assert one == tuning_file(tmp_path, "NVIDIA GeForce RTX 3060")
    assert one != tuning_file(tmp_path, "NVIDIA GeForce RTX 3060 Ti")
    assert one.parent == tuning_file(tmp_path, "../../etc/passwd").parent == tmp_path
    assert len(tuning_file(tmp_path, "x" * 500).name) < 128
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton" / "linear.py").write_text("pass")
    monkeypatch.setattr(tuning, "__file__", str(tmp_path / "tuning.py"))
    other = tuning_file(tmp_path, "NVIDIA GeForce RTX 3060")
    assert other != one
    (tmp_path / "triton" / "linear.py").write_text("pass # changed")
    assert tuning_file(tmp_path, "NVIDIA GeForce RTX 3060") != other
