"""A long prompt through a whole engine: `python -m support.long_prompt TOKENS`.

The model is small and its context is stretched by YaRN; its shapes are such as C++ takes. Says what
came of it, what computed, and by how much the process's peak of memory grew, as JSON.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from novamesh_engine.config import EngineConfig
from novamesh_engine.engine import Engine
from novamesh_engine.request import Request, SamplingParams
from support.tiny_engine import save_tiny

ANSWER: Final = 4
YARN: Final = {
    "rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 2048,
    "rope_theta": 1e4,
}  # fmt: skip


def ask(folder: Path, length: int) -> dict[str, Any]:
    """Answer a prompt of so many tokens, and say what it took."""
    save_tiny(
        folder, hidden_size=64, moe_intermediate_size=64, num_hidden_layers=1, head_dim=32,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=65_536,
        rope_parameters=YARN,
    )  # fmt: skip
    engine = Engine.load(folder, EngineConfig(max_running=2, kv_dtype="int8"))
    prompt = tuple(5 + at * 7919 % 200 for at in range(length))
    engine.submit(Request("a", prompt, SamplingParams(max_tokens=ANSWER, ignore_eos=True)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tokens = 0
    while engine.has_work:
        tokens += sum(len(output.token_ids) for output in engine.step())
    engine.check_integrity()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    prefilled = engine.stats().prefill_tokens
    kernels = engine.plan.kernels
    return {"tokens": tokens, "grown": grown, "prefilled": prefilled, "kernels": kernels}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="long-") as place:
        json.dump(ask(Path(place), int(sys.argv[1])), sys.stdout)
