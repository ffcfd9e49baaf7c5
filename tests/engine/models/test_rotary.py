"""Angles of every kind against transformers' own functions, and what length does to them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import MixtralConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from novamesh_engine.models.config import ModelConfig
from novamesh_engine.models.rope import Rope
from novamesh_engine.models.rotary import Rotary
from novamesh_proto.errors import Code, NovaMeshError
from support.tiny_moe import relative

SHAPE: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_experts_per_tok": 2, "intermediate_size": 64, "num_local_experts": 2, "head_dim": 32,
    "max_position_embeddings": 128,
}  # fmt: skip
ORIGINAL = {"original_max_position_embeddings": 32}
FACTORS = {
    "short_factor": [1.0 + i / 16 for i in range(16)],
    "long_factor": [2.0 + i for i in range(16)],
}
KINDS: list[dict[str, Any]] = [
    {"rope_type": "linear", "factor": 3.0},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "yarn", "factor": 4.0, **ORIGINAL},
    {"rope_type": "yarn", "factor": 4.0, **ORIGINAL, "beta_fast": 8.0, "beta_slow": 2.0,
     "truncate": False, "mscale": 1.3, "mscale_all_dim": 0.4},
    {"rope_type": "yarn", "factor": 2.5, **ORIGINAL, "attention_factor": 0.9},
    {"rope_type": "longrope", **ORIGINAL, **FACTORS},
    {"rope_type": "longrope", **ORIGINAL, **FACTORS, "factor": 2.0},
    {"rope_type": "llama3", "factor": 8.0, **ORIGINAL, "low_freq_factor": 1.0,
     "high_freq_factor": 4.0},
]  # fmt: skip


def angles(rotary: Rotary, length: int) -> Tensor:
    positions = torch.arange(length)
    return torch.stack(rotary.angles(positions, torch.full((length,), length)))


@pytest.mark.parametrize("parameters", KINDS, ids=lambda kind: kind["rope_type"])
@pytest.mark.parametrize("length", [20, 90, 200])
def test_angles_are_those_of_transformers(parameters: dict[str, Any], length: int) -> None:
    raw = SHAPE | {"model_type": "mixtral", "rope_parameters": parameters | {"rope_theta": 1e4}}
    found = angles(Rotary.create(ModelConfig.from_dict(raw).rope, 32), length)
    theirs = MixtralConfig(**SHAPE, rope_parameters=dict(raw["rope_parameters"]))
    compute = ROPE_INIT_FUNCTIONS[parameters["rope_type"]]
    frequencies, scale = compute(theirs, torch.device("cpu"), seq_len=torch.tensor(length))
    turns = torch.arange(length).float()[:, None] * frequencies
    # An angle of 200 radians is known to 1e-5 in float32.
    assert relative(found, torch.stack((turns.cos(), turns.sin())) * scale) < 5e-6


def test_default_angles_are_position_times_frequency() -> None:
    rotary = Rotary.create(Rope("default", 1e4), 8)
    wanted = torch.tensor([1.0, 0.1, 0.01, 0.001])
    assert torch.allclose(rotary.frequencies, wanted)
    cos, sin = rotary.angles(torch.tensor([0, 3]), torch.tensor([4, 4]))
    assert torch.equal(cos[0], torch.ones(4))
    assert torch.allclose(sin[1], (3 * wanted).sin())


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_each_token_goes_by_its_own_length(kind: str) -> None:
    """Sequences of several lengths in one batch do not disturb each other."""
    many = tuple(float(i + 1) for i in range(4))
    rotary = Rotary.create(Rope(kind, 1e4, 2.0, 16, 1.1, 1.2, (1.0,) * 4, many), 8)
    lengths = torch.tensor([10, 40, 16, 17, 25])
    mixed = torch.stack(rotary.angles(torch.full((5,), 9), lengths), dim=1)
    for row, length in enumerate(lengths.tolist()):
        assert relative(mixed[row], angles(rotary, length)[:, 9]) < 1e-6


def test_a_regime_tells_equal_keys() -> None:
    plain = Rotary.create(Rope("yarn", 1e4, 2.0, 16), 8)
    assert [plain.regime(count) for count in (1, 16, 17, 99)] == [0, 0, 0, 0]
    long = Rotary.create(Rope("longrope", 1e4, 2.0, 16, 1, 1, (1.0,) * 4, (2.0,) * 4), 8)
    assert [long.regime(count) for count in (1, 16, 17, 99)] == [0, 0, 1, 1]
    dynamic = Rotary.create(Rope("dynamic", 1e4, 2.0, 16), 8)
    assert [dynamic.regime(count) for count in (1, 16, 17, 99)] == [0, 0, 17, 99]


@pytest.mark.parametrize(
    ("rope", "words"),
    [
        (Rope("longrope", 1e4, 2.0, 16, 1, 1, (1.0,) * 3, (2.0,) * 4), "has 3 factors, not 4"),
        (Rope("longrope", 1e4, 2.0, 16, 1, 1, (1.0,) * 4, (2.0,) * 5), "has 5 factors, not 4"),
    ],
)
def test_factors_of_another_width_are_refused(rope: Rope, words: str) -> None:
    with pytest.raises(NovaMeshError, match=words) as caught:
        Rotary.create(rope, 8)
    assert caught.value.code is Code.CORRUPT


def test_dynamic_needs_two_pairs() -> None:
    with pytest.raises(NovaMeshError, match="head_dim of 4"):
        Rotary.create(Rope("dynamic", 1e4, 2.0, 16), 2)
