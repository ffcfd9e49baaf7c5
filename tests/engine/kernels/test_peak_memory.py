"""No path ever holds a dequantized stack of experts: peaks of memory, in processes of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from novamesh_engine.kernels import choice
from support.packed_memory import STACK_BYTES

TESTS = Path(__file__).parents[2]
WAYS = ("torch", *choice.look().runnable)


@pytest.mark.parametrize("way", WAYS)
def test_experts_stay_packed(way: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "support.packed_memory", way], capture_output=True, text=True,
        check=True, cwd=TESTS,
    )  # fmt: skip
    assert int(done.stdout) < STACK_BYTES // 4
