"""What is mixed in which share, for training and for the evaluation.

Rules: training draws only trained nouns, pairs and templates and skips held-out items; a row of
the evaluation draws only held-out items and never the same one twice. One seed, one stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Final

from novamesh_engine.recipe.corpus.arithmetic import make_sum
from novamesh_engine.recipe.corpus.chat import make_chat
from novamesh_engine.recipe.corpus.facts import make_fact
from novamesh_engine.recipe.corpus.item import Item
from novamesh_engine.recipe.corpus.noise import LOUD_SHARE, add_noise
from novamesh_engine.recipe.corpus.problems import make_problem
from novamesh_engine.recipe.corpus.split import Axes, is_held_item, normalise
from novamesh_engine.recipe.corpus.unknown import make_unknown

Make = Callable[[Random, Axes], Item]
TRAINED: Final = Axes()


def _problem(count: int) -> Make:
    return lambda rng, axes: make_problem(rng, count, axes)


_SHARES: Final[tuple[tuple[float, Make], ...]] = (
    (0.12, _problem(1)),
    (0.17, _problem(2)),
    (0.20, _problem(3)),
    (0.09, make_sum),
    (0.24, lambda rng, _: make_fact(rng)),
    (0.11, lambda rng, _: make_chat(rng)),
    (0.07, make_unknown),
)
_WEIGHTS: Final = [share for share, _ in _SHARES]
_MAKERS: Final = [make for _, make in _SHARES]


# A fact in capitals is other tokens, so that little is learned of it at the rate people use them; a
# problem has its numbers either way.
_LOUD_FACTS_TRAINED: Final = 0.25


def _noisy(rng: Random, item: Item, loud_share: float = LOUD_SHARE) -> Item:
    prompt = add_noise(rng, item.prompt, item.row != "chat", loud_share)
    return Item(item.row, prompt, item.answer)


def training_items(seed: str) -> Iterator[Item]:
    """An endless stream of items to train on; the same seed gives the same stream."""
    rng = Random(seed)
    while True:
        made = rng.choices(_MAKERS, _WEIGHTS)[0](rng, TRAINED)
        loud_share = _LOUD_FACTS_TRAINED if made.row == "facts" else LOUD_SHARE
        item = _noisy(rng, made, loud_share)
        if not is_held_item(item.prompt):
            yield item


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the evaluation: what is asked, and which parts of it were never trained."""

    name: str
    title: str
    make: Make
    axes: Axes = TRAINED
    bar: float | None = None


def _problem_rows() -> list[Row]:
    rows = []
    for key, title, axes, bar in (
        ("seeds", "held-out seeds", Axes(), 0.97),
        ("pairs", "operand pairs never trained", Axes(pairs=True), 0.97),
        ("nouns", "names and objects never trained", Axes(nouns=True), 0.97),
        ("templates", "templates never trained", Axes(templates=True), 0.70),
    ):
        rows += [
            Row(f"{key}-{n}", f"problems, {n} step{'s' * (n > 1)}, {title}", _problem(n), axes, bar)
            for n in (1, 2, 3)
        ]
    return rows


ROWS: Final = (
    *_problem_rows(),
    Row("all-axes", "problems, 1-3 steps, all of it never trained",
        lambda rng, axes: make_problem(rng, rng.randint(1, 3), axes), Axes(True, True, True)),
    Row("arithmetic", "bare sums, operand pairs never trained", make_sum, Axes(pairs=True)),
    Row("facts", "facts, questions never trained", lambda rng, _: make_fact(rng), bar=0.97),
    Row("chat", "small talk, lines never trained", lambda rng, _: make_chat(rng)),
    Row("unknown", "outside its world, templates never trained", make_unknown,
        Axes(nouns=True, templates=True)),
)  # fmt: skip


def evaluation_items(row: Row, count: int, seed: int = 0) -> tuple[Item, ...]:
    """Up to `count` different held-out items; fewer where the row has no more of them."""
    rng = Random(f"evaluate/{row.name}/{seed}")
    found: dict[str, Item] = {}
    for _ in range(count * 400):
        if len(found) == count:
            break
        item = row.make(rng, row.axes)
        noisy = _noisy(rng, item)
        if is_held_item(noisy.prompt):
            found.setdefault(normalise(noisy.prompt), noisy)
    return tuple(found.values())
