"""How people really type: casing, missing punctuation, polite words around a question.

Rules: whatever is added here, `split.normalise` takes away again, so noise never moves an item to
the other side of the split.
"""

from __future__ import annotations

from random import Random
from typing import Final

_BEFORE: Final = (
    "Please help me with this: ", "Please solve this: ", "Please answer: ", "Can you help me? ",
    "Can you solve this? ", "Can you tell me: ", "Could you tell me: ", "I have a question. ",
    "Here is a question: ", "Here is a problem: ", "Quick question: ", "Question: ", "Problem: ",
    "Solve this: ", "Solve: ", "Tell me: ", "Hi! ", "Hello, ", "Hey, ", "Help me: ", "Ok, ", "So, ",
    "Please: ", "Do you know: ", "I need to know: ", "Hi, I have a question. ",
)  # fmt: skip
_AFTER: Final = (
    " Please.",
    " please",
    " Thanks!",
    " Thank you.",
    " Show your steps.",
    " Show your work.",
    " Think step by step.",
    " Step by step please.",
    " Answer briefly.",
    " Just the answer.",
)
NOISE_SHARE: Final = 0.4
LOUD_SHARE: Final = 0.08  # of the prompts without their casing: in capitals


def add_noise(rng: Random, prompt: str, polite: bool = True, loud_share: float = LOUD_SHARE) -> str:
    """The prompt as somebody might type it; most prompts stay as they are."""
    if rng.random() >= NOISE_SHARE:
        return prompt
    roll = rng.random()
    if roll < 0.3 and polite:
        prompt = rng.choice(_BEFORE) + prompt
    elif roll < 0.45 and polite:
        prompt = prompt + rng.choice(_AFTER)
    if rng.random() < 0.45:
        prompt = prompt.lower() if rng.random() < 1 - loud_share else prompt.upper()
    if rng.random() < 0.35:
        prompt = prompt.rstrip("?.! ") or prompt
    if rng.random() < 0.08:
        prompt = prompt.replace(". ", ".\n") if rng.random() < 0.5 else f" {prompt} "
    return prompt
