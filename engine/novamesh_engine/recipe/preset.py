"""The sizes and the schedule of a recipe, by name.

Rules: a preset is data; steps are fixed, not minutes, so that a slow machine makes the same model.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Final

from novamesh_proto.errors import Code, NovaMeshError


@dataclass(frozen=True, slots=True)
class Preset:
    """Everything that decides the result besides the seed."""

    name: str
    layers: int = 6
    hidden: int = 128
    heads: int = 4
    experts: int = 8
    experts_per_token: int = 2
    expert_size: int = 64
    vocab: int = 1024
    context: int = 192
    """Tokens in a packed training sequence."""
    max_context: int = 512
    batch: int = 8
    pretrain_steps: int = 300
    sft_steps: int = 12_200
    warmup_steps: int = 50
    decay_share: float = 0.5
    muon_rate: float = 0.0075
    adam_rate: float = 3e-3
    weight_decay: float = 0.05
    balance: float = 0.01
    shard_steps: int = 100
    """Steps whose text is made at once."""
    checkpoint_steps: int = 250
    tokenizer_items: int = 40_000

    @property
    def steps(self) -> int:
        """Training steps of both phases."""
        return self.pretrain_steps + self.sft_steps

    @property
    def digest(self) -> str:
        """A name for exactly this preset, so that a checkpoint of another one is refused."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


PRESETS: Final = {
    "pico": Preset("pico"),
    "smoke": Preset(
        "smoke", layers=2, hidden=64, heads=2, experts=4, vocab=512, context=96, batch=4,
        pretrain_steps=4, sft_steps=16, warmup_steps=2, shard_steps=5, checkpoint_steps=10,
        tokenizer_items=400,
    ),
}  # fmt: skip


def find_preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        NovaMeshError: there is none.
    """
    if name not in PRESETS:
        raise NovaMeshError(
            Code.BAD_CONFIG,
            f"there is no preset {name!r}",
            f"choose one of: {', '.join(sorted(PRESETS))}",
        )
    return PRESETS[name]
