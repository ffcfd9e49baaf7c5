"""Every family against transformers in float32, and every NF4 profile against its own weights."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor

from novamesh_engine.kernels import choice
from novamesh_engine.kernels.forward import NativeForward
from novamesh_engine.models.config import ModelConfig
from novamesh_engine.quant.convert import convert
from novamesh_engine.weights.load import LoadedModel, load_model
from support.tiny_moe_families import (
    CASES,
    Case,
    ask,
    divergence,
    load_oracle,
    make_checkpoint,
    relative,
    run,
    tokens_of,
    unpack,
)

BOUND, ROUNDED, NATS = 1e-5, 2e-2, 1e-3
BY_NAME = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def native(model: LoadedModel, precision: str, tokens: list[int]) -> Tensor:
    forward = NativeForward(model.decoder, choice.open_native(2, precision))
    return run(forward.forward, model.config, tokens)


@BY_NAME
def test_prefill_and_cached_decode_equal_transformers(case: Case, tmp_path: Path) -> None:
    oracle, tokens = make_checkpoint(case, tmp_path), tokens_of(1)
    model = load_model(tmp_path)
    wanted = ask(oracle, tokens)
    found = run(model.decoder.forward, model.config, tokens)
    assert relative(found, wanted) < BOUND
    if choice.look().runnable:
        assert relative(native(model, "exact", tokens), wanted) < BOUND
    assert model.config.parameters == sum(weight.numel() for weight in oracle.parameters())


@BY_NAME
def test_a_profile_equals_transformers_with_the_dequantized_weights(
    case: Case, tmp_path: Path
) -> None:
    """The definition, and C++ in the set that is used here; the other sets equal the definition."""
    tokens = tokens_of(2)
    plain, packed, unpacked = (tmp_path / part for part in ("plain", "packed", "unpacked"))
    exact = make_checkpoint(case, plain)
    convert(plain, packed, "tiny")
    unpack(packed, plain, unpacked)
    wanted = ask(load_oracle(case, unpacked), tokens)
    model = load_model(packed)
    found = run(model.decoder.forward, model.config, tokens)
    assert relative(found, wanted) < BOUND
    assert 0.0 < divergence(found, ask(exact, tokens)) < 0.5
    if choice.look().runnable:
        assert relative(native(model, "exact", tokens), wanted) < BOUND
        rounded = native(model, "int8", tokens)
        assert BOUND < relative(rounded, wanted) < ROUNDED
        assert divergence(rounded, wanted) < NATS


def test_the_cases_are_as_odd_as_they_claim(tmp_path: Path) -> None:
    """A head_dim from the weights, an expert in two files, windows within the prompt."""
    case = next(case for case in CASES if case.name == "phimoe")
    make_checkpoint(case, tmp_path)
    config = ModelConfig.from_file(tmp_path / "config.json")
    assert (config.head_dim, load_model(tmp_path).config.head_dim) == (16, 32)
    assert config.windows == (47, 47)
    index = (tmp_path / "model.safetensors.index.json").read_text()
    files = {line.split('"')[3] for line in index.splitlines() if "experts.0.w" in line}
    assert len(files) > 2
