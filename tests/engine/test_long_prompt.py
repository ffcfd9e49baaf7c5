"""A prompt as long as a context can be stretched to is read in bounded memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from novamesh_engine.kernels import choice
from support.long_prompt import ANSWER

# Scores of the whole prompt at once would take 8 GiB; its keys and values take 2.3 MiB.
LONG, NATIVE_MAX = 32_768, 32 << 20
# Torch holds a tile of scores several times over and tensors of many sizes, which its allocator
# does not give back; 8,192 tokens' scores at once would take 512 MiB for each such copy.
SHORTER, TORCH_MAX = 8_192, 192 << 20


def ask(length: int, isa: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "support.long_prompt", str(length)], capture_output=True, text=True,
        check=True, cwd=Path(__file__).parents[1], env=os.environ | {choice.ISA_VARIABLE: isa},
    )  # fmt: skip
    said: dict[str, Any] = json.loads(done.stdout)
    assert (said["tokens"], said["prefilled"]) == (ANSWER, length)
    return said


@pytest.mark.skipif(not choice.look().runnable, reason="installed without a C++ compiler")
def test_a_prompt_of_32k_tokens() -> None:
    said = ask(LONG, "")
    assert said["kernels"].startswith("native")
    assert said["grown"] < NATIVE_MAX


def test_torch_too_reads_a_long_prompt_in_tiles() -> None:
    said = ask(SHORTER, "none")  # no such set: torch computes
    assert said["kernels"] == "torch"
    assert said["grown"] < TORCH_MAX
