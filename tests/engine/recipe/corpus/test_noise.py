"""Noise: most prompts stay as they are, and none moves to the other side of the split."""

from __future__ import annotations

from random import Random

from novamesh_engine.recipe.corpus.noise import NOISE_SHARE, add_noise
from novamesh_engine.recipe.corpus.split import normalise

PROMPT = "Ana has 12 pens. She buys 7 more. How many does she have?"


def test_noise_is_taken_away_again_by_the_splits_normal_form() -> None:
    rng = Random(1)
    typed = {add_noise(rng, PROMPT) for _ in range(2000)}
    assert len(typed) > 50
    assert {normalise(each) for each in typed} == {normalise(PROMPT)}


def test_most_prompts_stay_as_they_are() -> None:
    rng = Random(2)
    kept = sum(add_noise(rng, PROMPT) == PROMPT for _ in range(2000))
    assert kept > 2000 * (1 - NOISE_SHARE) - 100


def test_without_politeness_only_form_changes() -> None:
    rng = Random(3)
    for _ in range(500):
        typed = add_noise(rng, PROMPT, polite=False, loud_share=0.0)
        assert typed.lower().split()[:3] == PROMPT.lower().split()[:3]
        assert typed != PROMPT.upper()
