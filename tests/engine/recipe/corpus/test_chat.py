"""Small talk: one reply to a line, whatever its casing."""

from __future__ import annotations

from random import Random

from novamesh_engine.recipe.corpus.chat import INTENTS, make_chat


def test_a_line_has_one_reply() -> None:
    replies: dict[str, str] = {}
    for intent in INTENTS:
        for opening in intent.openings:
            for ending in intent.endings:
                line = (opening + ending).lower()
                assert replies.setdefault(line, intent.reply) == intent.reply, line


def test_all_intents_come_up() -> None:
    rng = Random(1)
    assert len({make_chat(rng).answer for _ in range(500)}) == len(INTENTS)
