"""Held-out accuracy of a model file, through the engine that serves it.

Rules: greedy; a problem counts by its final number, everything else by equality with the one
accepted answer; items come from the held-out side only and are the same for every model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from novamesh_engine.config import EngineConfig
from novamesh_engine.engine import Engine
from novamesh_engine.recipe.corpus.item import Item
from novamesh_engine.recipe.corpus.mixture import ROWS, Row, evaluation_items
from novamesh_engine.recipe.interval import wilson
from novamesh_engine.request import Request, SamplingParams
from novamesh_proto.errors import Code, NovaMeshError

ANSWER_TOKENS_MAX: Final = 96
RUNNING: Final = 32
ITEMS_MAX: Final = 10_000
_FINAL: Final = "Answer:"


@dataclass(frozen=True, slots=True)
class Mistake:
    """One item that was answered wrongly."""

    prompt: str
    wanted: str
    given: str


@dataclass(frozen=True, slots=True)
class Score:
    """One row of the table."""

    row: Row
    asked: int
    right: int
    mistakes: tuple[Mistake, ...] = ()

    @property
    def accuracy(self) -> float:
        """Share of right answers; 0 when nothing was asked."""
        return self.right / self.asked if self.asked else 0.0

    @property
    def bounds(self) -> tuple[float, float]:
        """Wilson's 95 % interval."""
        return wilson(self.right, self.asked)

    def as_dict(self) -> dict[str, object]:
        """For JSON; shares are rounded to four digits."""
        low, high = (round(end, 4) for end in self.bounds)
        return {
            "row": self.row.name, "title": self.row.title, "asked": self.asked,
            "right": self.right, "accuracy": round(self.accuracy, 4), "low": low, "high": high,
            "bar": self.row.bar,
        }  # fmt: skip


def open_engine(model: str) -> Engine:
    """An engine for many short answers at once."""
    return Engine.load(model, EngineConfig(max_running=RUNNING, max_step_tokens=1024))


def answer(engine: Engine, prompts: Sequence[str]) -> list[str]:
    """The engine's greedy answers, in order.

    Raises:
        NovaMeshError: a prompt does not fit the model's context.
    """
    texts = [""] * len(prompts)
    waiting = iter(range(len(prompts)))
    sampling = SamplingParams(max_tokens=ANSWER_TOKENS_MAX)
    open_requests = 0
    while True:
        while open_requests < RUNNING and (number := next(waiting, None)) is not None:
            turn = [{"role": "user", "content": prompts[number]}]
            tokens = tuple(engine.tokenizer.encode_chat(turn))
            engine.submit(Request(id=str(number), prompt=tokens, sampling=sampling))
            open_requests += 1
        if not engine.has_work:
            return texts
        for output in engine.step():
            texts[int(output.request_id)] += output.text
            open_requests -= output.finish is not None


def is_right(item: Item, given: str) -> bool:
    """Whether an answer counts: the same final number, or the same words."""
    given = given.strip()
    if _FINAL in item.answer:
        return item.answer.rsplit(_FINAL, 1)[1].strip() == given.rsplit(_FINAL, 1)[-1].strip()
    return item.answer == given


def score_row(row: Row, items: int, answers: Callable[[Sequence[str]], list[str]]) -> Score:
    """Ask one row's items and count."""
    asked = evaluation_items(row, items)
    given = answers([item.prompt for item in asked])
    mistakes = tuple(
        Mistake(item.prompt, item.answer, text)
        for item, text in zip(asked, given, strict=True)
        if not is_right(item, text)
    )
    return Score(row, len(asked), len(asked) - len(mistakes), mistakes)


def evaluate(engine: Engine, items: int, rows: Sequence[Row] = ROWS) -> Iterator[Score]:
    """Score row after row.

    Raises:
        NovaMeshError: `items` is out of range.
    """
    if not 1 <= items <= ITEMS_MAX:
        raise NovaMeshError(
            Code.BAD_REQUEST, f"{items} items a row is not within 1 and {ITEMS_MAX}"
        )
    for row in rows:
        yield score_row(row, items, lambda prompts: answer(engine, prompts))
