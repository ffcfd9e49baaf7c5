"""Items as packed token sequences: the input of the training loop.

Rules: a shard of steps depends on preset, seed and its number alone, so a resumed run reads what an
uninterrupted one would; a sequence begins with an item and no item is cut. Pretraining weighs every
token, the chat phase only answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import Final

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from novamesh_engine.recipe.corpus.item import Item
from novamesh_engine.recipe.corpus.mixture import training_items
from novamesh_engine.recipe.preset import Preset
from novamesh_engine.recipe.vocabulary import END, PAD, render_prompt

_PENDING_MAX: Final = 48
_ENCODE_BATCH: Final = 512
_SYSTEM_SHARE: Final = 0.15
_SYSTEMS: Final = (
    "You are a helpful assistant.", "You are nova-pico.", "Answer the question.", "Be brief.",
    "You are a calculator.", "You are a friendly tutor.", "Help the user.", "Solve the problem.",
    "You are a helpful assistant. Answer briefly.", "Think step by step.", "Be kind and exact.",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Document:
    """One item as tokens, and which of them count for the loss."""

    ids: tuple[int, ...]
    loss_from: int
    """Index of the first token that counts."""


@dataclass(frozen=True, slots=True)
class Shard:
    """Some steps of training: tokens [steps, batch, context + 1] and their weights (0 or 1)."""

    ids: NDArray[np.int64]
    weights: NDArray[np.float32]


def _halves(items: list[Item], rng: Random, chat: bool) -> list[tuple[str, str]]:
    if not chat:
        return [("", f"{item.prompt}\n{item.answer}{END}\n") for item in items]
    pairs = []
    for item in items:
        system = rng.choice(_SYSTEMS) if rng.random() < _SYSTEM_SHARE else ""
        pairs.append((render_prompt(item.prompt, system), f"{item.answer}{END}\n"))
    return pairs


def _documents(tokenizer: Tokenizer, seed: str, chat: bool) -> Iterator[Document]:
    items = training_items(seed)
    rng = Random(seed + "/system")
    while True:
        halves = _halves(list(islice(items, _ENCODE_BATCH)), rng, chat)
        heads = tokenizer.encode_batch_fast([head for head, _ in halves])
        tails = tokenizer.encode_batch_fast([tail for _, tail in halves])
        for head, tail in zip(heads, tails, strict=True):
            yield Document((*head.ids, *tail.ids), len(head.ids))


def _fill(
    documents: Iterator[Document], pending: list[Document], length: int
) -> tuple[list[int], list[float]]:
    """One sequence: the first pending document, then whichever fits into what is left."""
    ids: list[int] = []
    weights: list[float] = []
    while True:
        pending.extend(islice(documents, _PENDING_MAX - len(pending)))
        room = length - len(ids)
        found = next((n for n, doc in enumerate(pending) if len(doc.ids) <= room), None)
        if found is None:
            return ids, weights
        document = pending.pop(found)
        ids += document.ids
        weights += [float(n >= document.loss_from) for n in range(len(document.ids))]


def make_shard(preset: Preset, tokenizer: Tokenizer, seed: int, number: int) -> Shard:
    """The text of steps `number * shard_steps` and following."""
    first = number * preset.shard_steps
    chat = first >= preset.pretrain_steps
    length = preset.context + 1
    rows = preset.shard_steps * preset.batch
    ids = np.full((rows, length), tokenizer.token_to_id(PAD), np.int64)
    weights = np.zeros((rows, length), np.float32)
    stream = _documents(tokenizer, f"train/{seed}/{number}", chat)
    documents = (document for document in stream if len(document.ids) <= length)
    pending: list[Document] = []
    for row in range(rows):
        tokens, counts = _fill(documents, pending, length)
        ids[row, : len(tokens)] = tokens
        weights[row, : len(tokens)] = counts
    shape = (preset.shard_steps, preset.batch, length)
    return Shard(ids.reshape(shape), weights.reshape(shape))
