"""The evaluation counts what it should, through a real engine with a tiny model."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from novamesh_engine.engine import Engine
from novamesh_engine.recipe.corpus.item import Item
from novamesh_engine.recipe.corpus.mixture import ROWS, evaluation_items
from novamesh_engine.recipe.evaluation import answer, evaluate, is_right, open_engine, score_row
from novamesh_engine.recipe.export import export
from novamesh_engine.recipe.network import Network
from novamesh_engine.recipe.preset import PRESETS
from novamesh_engine.recipe.vocabulary import train_tokenizer
from novamesh_proto.errors import NovaMeshError

SMOKE = PRESETS["smoke"]
SUM = Item("problems-1", "?", "12 + 25 = 37. Answer: 37")
FACT = Item("facts", "?", "The capital of France is Paris.")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    torch.manual_seed(6)
    profile = export(Network(SMOKE), train_tokenizer(SMOKE, 0), tmp_path_factory.mktemp("model"))
    return open_engine(str(profile.path))


@pytest.mark.parametrize(
    ("item", "given", "right"),
    [
        (SUM, "12 + 25 = 37. Answer: 37", True),
        (SUM, " 25 + 12 = 37. Answer: 37 ", True),
        (SUM, "12 + 25 = 37. Answer: 38", False),
        (SUM, "12 + 25 = 37.", False),
        (SUM, "Answer: 3", False),
        (FACT, "The capital of France is Paris.", True),
        (FACT, "The capital of France is Rome.", False),
        (FACT, "", False),
    ],
)
def test_what_counts(item: Item, given: str, right: bool) -> None:
    assert is_right(item, given) is right


def test_a_row_is_counted_with_its_mistakes() -> None:
    row = ROWS[0]
    items = evaluation_items(row, 40)
    known = {item.prompt: item.answer for item in items[:30]}

    def answers(prompts: Sequence[str]) -> list[str]:
        return [known.get(prompt, "Answer: 9999") for prompt in prompts]

    score = score_row(row, 40, answers)
    assert (score.asked, score.right, len(score.mistakes)) == (40, 30, 10)
    assert score.accuracy == 0.75
    assert score.mistakes[0].wanted == items[30].answer
    values = score.as_dict()
    assert (values["row"], values["low"], values["high"]) == ("seeds-1", 0.5981, 0.8581)


def test_answers_come_in_order_and_do_not_depend_on_the_batch(engine: Engine) -> None:
    prompts = [f"What is {number} + 3?" for number in range(40)]
    together = answer(engine, prompts)
    assert len(together) == 40
    assert together[7] == answer(engine, prompts[7:8])[0]
    engine.check_integrity()


def test_an_untrained_model_scores_nothing(engine: Engine) -> None:
    scores = list(evaluate(engine, 4, ROWS[:2]))
    assert [score.right for score in scores] == [0, 0]


@pytest.mark.parametrize("items", [0, 10_001])
def test_the_number_of_items_is_bounded(engine: Engine, items: int) -> None:
    with pytest.raises(NovaMeshError, match="not within"):
        list(evaluate(engine, items))
