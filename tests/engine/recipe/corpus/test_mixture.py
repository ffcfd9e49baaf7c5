"""Training and evaluation never share an item, and every row can be filled."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest

from novamesh_engine.recipe.corpus.mixture import ROWS, Row, evaluation_items, training_items
from novamesh_engine.recipe.corpus.split import is_held_item, normalise

TRAINED = list(islice(training_items("train/0/7"), 20_000))


def test_no_training_item_is_held_out() -> None:
    assert not [item for item in TRAINED if is_held_item(item.prompt)]


def test_no_normalised_item_is_in_both_sets() -> None:
    trained = {normalise(item.prompt) for item in TRAINED}
    for row in ROWS:
        asked = {normalise(item.prompt) for item in evaluation_items(row, 60)}
        assert not trained & asked, row.name


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row_has_different_held_out_items(row: Row) -> None:
    items = evaluation_items(row, 40)
    assert len({normalise(item.prompt) for item in items}) == len(items) == 40
    assert all(is_held_item(item.prompt) for item in items)
    assert items == evaluation_items(row, 40)


def test_shares_are_about_right() -> None:
    counts = Counter(item.row for item in TRAINED)
    assert 0.09 < counts["chat"] / len(TRAINED) < 0.13
    assert 0.20 < counts["facts"] / len(TRAINED) < 0.28
    assert all(counts[f"problems-{steps}"] > 2000 for steps in (1, 2, 3))


def test_a_stream_depends_on_its_seed() -> None:
    first = list(islice(training_items("a"), 20))
    assert first == list(islice(training_items("a"), 20))
    assert first != list(islice(training_items("b"), 20))


def test_lines_stay_short() -> None:
    assert max(len(item.prompt) for item in TRAINED) < 500
    assert max(len(item.answer) for item in TRAINED) < 110
