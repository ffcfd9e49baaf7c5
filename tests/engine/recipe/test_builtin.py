"""The model that ships: whole, small, honestly described, and it can do what its card says."""

from __future__ import annotations

import json

import pytest

from novamesh_engine.catalogue import locate
from novamesh_engine.engine import Engine
from novamesh_engine.quant.profile import read_profile, verify
from novamesh_engine.recipe.corpus.mixture import ROWS
from novamesh_engine.recipe.evaluation import answer, open_engine, score_row

FOLDER = locate("nova-pico")
BYTES_MAX = 2 * 1024 * 1024
QUICK = ("seeds-1", "nouns-2", "facts", "templates-1")
QUICK_FLOOR = 34
"""Of 40 fixed items; our kernels get 37, others may fall differently in a near tie."""


@pytest.fixture(scope="module")
def engine() -> Engine:
    return open_engine("nova-pico")


def test_every_file_is_what_the_manifest_says() -> None:
    profile = verify(read_profile(FOLDER))
    assert (profile.name, profile.model_type, profile.quant) == ("nova-pico", "nova", "nf4")
    assert 1_600_000 < profile.parameters < 1_800_000
    assert profile.file_names == {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip


def test_it_is_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= BYTES_MAX


def test_the_evaluation_is_of_this_model_and_every_row_reaches_its_bar() -> None:
    report = json.loads((FOLDER / "evaluation.json").read_text())
    assert report["digest"] == read_profile(FOLDER).digest_text
    assert report["command"] == "novamesh recipe evaluate nova-pico --items 500 --json"
    assert [row["row"] for row in report["rows"]] == [row.name for row in ROWS]
    barred = [row for row in report["rows"] if row["bar"] is not None]
    assert len(barred) == 13
    assert not [row["row"] for row in barred if row["accuracy"] < row["bar"]]


def test_the_card_says_first_what_it_is_and_is_not() -> None:
    first = (FOLDER / "README.md").read_text().splitlines()[0]
    assert "demonstration model" in first
    assert "not a general assistant" in first
    assert read_profile(FOLDER).digest_text in (FOLDER / "README.md").read_text()


def test_a_quick_evaluation_clears_a_floor(engine: Engine) -> None:
    rows = [row for row in ROWS if row.name in QUICK]
    scores = [score_row(row, 10, lambda prompts: answer(engine, prompts)) for row in rows]
    assert sum(score.asked for score in scores) == 40
    assert sum(score.right for score in scores) >= QUICK_FLOOR, [s.mistakes for s in scores]


@pytest.mark.parametrize(
    ("prompt", "reply"),
    [
        ("What is 12 + 25?", "12 + 25 = 37. Answer: 37"),
        ("What is the capital of France?", "The capital of France is Paris."),
        ("Hello!", "Hello! Ask me a sum, a word problem or a simple fact."),
        ("Who won the election?", "I don't know."),
        (
            "Ada has 12 apples. She buys 25 more and gives 9 to Ben. How many has she now?",
            "12 + 25 = 37. 37 - 9 = 28. Answer: 28",
        ),
    ],
)
def test_what_a_newcomer_asks(engine: Engine, prompt: str, reply: str) -> None:
    assert answer(engine, [prompt]) == [reply]
