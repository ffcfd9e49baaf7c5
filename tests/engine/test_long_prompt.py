"""A prompt as long as a context can be stretched to is read in bounded memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from support.long_prompt import ANSWER, PROMPT

# Scores of the whole prompt at once would take 8 GiB; its keys and values take 1.2 MiB.
GROWN_MAX = 300 << 20


def test_a_prompt_of_32k_tokens() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "support.long_prompt"], capture_output=True, text=True, check=True,
        cwd=Path(__file__).parents[1],
    )  # fmt: skip
    said = json.loads(done.stdout)
    assert (said["tokens"], said["prefilled"]) == (ANSWER, PROMPT)
    assert said["grown"] < GROWN_MAX
