"""`recipe train` and `recipe evaluate` through the parser, and that importing starts no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from novamesh_engine.catalogue import locate
from novamesh_engine.recipe.cli import _table, app
from novamesh_engine.recipe.corpus.mixture import ROWS
from novamesh_engine.recipe.evaluation import Score
from novamesh_engine.recipe.preset import PRESETS
from novamesh_proto.errors import NovaMeshError

BUILTIN = locate("nova-pico")


@pytest.fixture(autouse=True)
def _eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a compiler on the path training is eager; torch's settings are put back."""
    monkeypatch.setenv("PATH", "")
    yield
    torch.use_deterministic_algorithms(False)


def run(*arguments: str) -> None:
    app(list(arguments), result_action="return_value")


def test_train_then_evaluate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("train", "--preset", "smoke", "--out", str(tmp_path))
    captured = capsys.readouterr()
    path, digest, summary = captured.out.splitlines()
    assert Path(path) == tmp_path / "nova-smoke"
    assert digest.startswith("sha256:")
    assert "parameters" in summary
    assert f"{PRESETS['smoke'].steps}/{PRESETS['smoke'].steps}" in captured.err

    run("evaluate", path, "--items", "2", "--json")
    report = json.loads(capsys.readouterr().out)
    assert report["digest"] == digest
    assert report["rows"][0]["asked"] == 2
    assert report["command"] == f"novamesh recipe evaluate {path} --items 2 --json"

    run("evaluate", path, "--items", "1", "--mistakes", "1")
    captured = capsys.readouterr()
    assert f"{len(ROWS)}/{len(ROWS)}" in captured.err
    assert ROWS[-1].name not in captured.err.splitlines()[-1]
    table = captured.out
    assert "names and objects never trained" in table
    assert "!=" in table


def test_the_table_is_that_of_the_model_card() -> None:
    report = json.loads((BUILTIN / "evaluation.json").read_text())
    rows = {row["row"]: row for row in report["rows"]}
    known = [row for row in ROWS if row.name in rows]
    scores = [Score(row, rows[row.name]["asked"], rows[row.name]["right"]) for row in known]
    assert scores
    card = [line.split() for line in (BUILTIN / "README.md").read_text().splitlines()]
    header, *lines = _table(scores, 0).splitlines()
    assert header.split() in card
    for line in lines:
        # The card's bounds were rounded twice: their last digit may differ by one.
        start = line.split()[:-4]
        assert any(row[:-4] == start for row in card), line
    assert len({len(line) for line in lines}) == 1


def test_training_twice_into_one_folder_is_refused(tmp_path: Path) -> None:
    run("train", "--preset", "smoke", "--out", str(tmp_path))
    with pytest.raises(NovaMeshError, match="not empty"):
        run("train", "--preset", "smoke", "--out", str(tmp_path))


def test_an_unfinished_training_is_not_thrown_away(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.safetensors").write_bytes(b"precious")
    with pytest.raises(NovaMeshError, match="unfinished") as caught:
        run("train", "--preset", "smoke", "--out", str(tmp_path))
    assert "--resume" in caught.value.hint


def test_resume_without_a_checkpoint_is_told(tmp_path: Path) -> None:
    with pytest.raises(NovaMeshError, match="no checkpoint"):
        run("train", "--preset", "smoke", "--out", str(tmp_path), "--resume")


def test_an_unknown_preset_is_told(tmp_path: Path) -> None:
    with pytest.raises(NovaMeshError, match="no preset"):
        run("train", "--preset", "giant", "--out", str(tmp_path))


def test_importing_the_commands_starts_no_torch() -> None:
    code = "import sys, novamesh_engine.recipe.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
