"""A whole step in C++ equals the decoder's definition, in every instruction set and family."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from torch import Tensor

from novamesh_engine.config import EngineConfig
from novamesh_engine.kernels import choice
from novamesh_engine.kernels.forward import NativeForward
from novamesh_engine.kernels.native import UnsuitedError
from novamesh_engine.kv_cache import DTYPES, PagedKV
from novamesh_engine.quant.convert import convert
from novamesh_engine.weights.load import LoadedModel, load_model
from support.tiny_moe import Part, PlainKV, make_batch
from support.tiny_moe_families import (
    CASES,
    Forward,
    divergence,
    make_checkpoint,
    relative,
    run,
    tokens_of,
)

SETS = choice.look().runnable
pytestmark = pytest.mark.skipif(not SETS, reason="installed without a C++ compiler")
EXACT, ROUNDED, NATS = 1e-5, 2e-2, 1e-3
# Rounding adds up with depth, about as the root of the layers: 0.014 for 2, 0.029 to 0.060 for 16.
DEEP, DEEP_ROUNDED, DEEP_NATS = 16, 8e-2, 1e-2
PACKED = ("mixtral-stacked", "nova", "phimoe", "olmoe", "qwen2_moe", "qwen3_moe-yarn")


@cache
def folder() -> TemporaryDirectory[str]:
    """Where this file's checkpoints are made, once each."""
    return TemporaryDirectory(prefix="forward-")


@cache
def plain(name: str) -> LoadedModel:
    path = Path(folder().name) / name
    make_checkpoint(next(case for case in CASES if case.name == name), path)
    return load_model(path)


@cache
def packed(name: str) -> LoadedModel:
    plain(name)
    path = Path(folder().name) / name
    convert(path, path.with_suffix(".nf4"), "tiny")
    return load_model(path.with_suffix(".nf4"))


def native(model: LoadedModel, isa: str, precision: str, threads: int = 2) -> NativeForward:
    return NativeForward(model.decoder, choice.open_native(threads, precision, isa))


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("name", [case.name for case in CASES])
def test_float32_equals_the_definition(name: str, isa: str) -> None:
    model, tokens = plain(name), tokens_of(3)
    wanted = run(model.decoder.forward, model.config, tokens)
    assert relative(run(native(model, isa, "exact").forward, model.config, tokens), wanted) < EXACT


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("name", PACKED)
def test_packed_weights_equal_the_definition(name: str, isa: str) -> None:
    model, tokens = packed(name), tokens_of(4)
    wanted = run(model.decoder.forward, model.config, tokens)
    exact = run(native(model, isa, "exact").forward, model.config, tokens)
    assert relative(exact, wanted) < EXACT
    rounded = run(native(model, isa, "int8").forward, model.config, tokens)
    assert EXACT < relative(rounded, wanted) < ROUNDED
    assert divergence(rounded, wanted) < NATS


@pytest.mark.parametrize("name", ["mixtral", "phimoe", "qwen2_moe"])
def test_rounding_adds_up_with_depth(name: str) -> None:
    case = next(case for case in CASES if case.name == name)
    path = Path(folder().name) / f"{name}-deep"
    make_checkpoint(replace(case, changes={**case.changes, "num_hidden_layers": DEEP}), path)
    convert(path, path.with_suffix(".nf4"), "tiny")
    model, tokens = load_model(path.with_suffix(".nf4")), tokens_of(2)
    wanted = run(model.decoder.forward, model.config, tokens)
    exact = run(native(model, SETS[-1], "exact").forward, model.config, tokens)
    assert relative(exact, wanted) < EXACT
    rounded = run(native(model, SETS[-1], "int8").forward, model.config, tokens)
    assert ROUNDED < relative(rounded, wanted) < DEEP_ROUNDED
    assert divergence(rounded, wanted) < DEEP_NATS


def cached(forward: Forward, model: LoadedModel, dtype: torch.dtype) -> Tensor:
    """Logits of 40 tokens of prompt and 20 of decode from the engine's own cache."""
    kv, tokens = PagedKV(model.config, 16, 16, dtype, "cpu"), tokens_of(5, 60)
    layout = PlainKV(model.config, blocks=16, block_size=16, stride=5)
    steps = [Part(0, 0, tokens[:40]), *(Part(0, at, [tokens[at]]) for at in range(40, 60))]
    return torch.cat([forward(make_batch(layout, [part]), kv) for part in steps])


@cache
def defined(dtype: torch.dtype) -> Tensor:
    model = packed("phimoe")
    return cached(model.decoder.forward, model, dtype)


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("precision", ["exact", "int8"])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
def test_every_cache_gives_what_the_definition_gives(
    dtype: torch.dtype, precision: str, isa: str
) -> None:
    model = packed("phimoe")
    found = cached(native(model, isa, precision).forward, model, dtype)
    # What two exact ways round to a cache's step apart: a value here and there.
    apart = EXACT if dtype == torch.float32 else 3e-3
    assert relative(found, defined(dtype)) < (apart if precision == "exact" else ROUNDED)


@pytest.mark.parametrize("isa", SETS)
def test_threads_and_neighbours_change_nothing(isa: str) -> None:
    """Bit for bit: what makes an answer independent of the machine's load."""
    model, tokens = packed("qwen2_moe"), tokens_of(6, 48)
    parts = [Part(0, 0, tokens[:20]), Part(1, 0, tokens[20:21]), Part(2, 0, tokens[21:48])]
    together, alone = [], []
    for threads in (1, 3):
        forward = native(model, isa, "int8", threads)
        kv = PlainKV(model.config, block_size=8)
        together.append(forward.forward(make_batch(kv, parts), kv))
        kv = PlainKV(model.config, block_size=8)
        alone.append(torch.cat([forward.forward(make_batch(kv, [part]), kv) for part in parts]))
    assert torch.equal(together[0], together[1])
    assert torch.equal(alone[0], alone[1])
    assert torch.equal(together[0], alone[0])


def test_a_bad_index_is_refused_before_anything_is_written() -> None:
    model = packed("olmoe")
    forward, kv = native(model, SETS[-1], "int8"), PlainKV(model.config)
    for name, value in (("token_ids", 1 << 20), ("slots", -1), ("block_tables", 99)):
        batch = make_batch(kv, [Part(0, 0, [1, 2])])
        getattr(batch, name).fill_(value)
        with pytest.raises(AssertionError, match="index out of range"):
            forward.forward(batch, kv)


def test_a_cache_that_cpp_does_not_read_is_refused() -> None:
    model = packed("olmoe")
    kv = PlainKV(model.config)
    kv.stores = [(keys.half(), values.half()) for keys, values in kv.stores]
    with pytest.raises(UnsuitedError, match=r"torch\.float16"):
        native(model, SETS[-1], "int8").forward(make_batch(kv, [Part(0, 0, [1])]), kv)
    apart = PlainKV(model.config)
    apart.stores.reverse()
    with pytest.raises(ValueError, match="one behind the other"):
        native(model, SETS[-1], "int8").forward(make_batch(apart, [Part(0, 0, [1])]), apart)


def test_names_say_what_computes() -> None:
    assert native(packed("olmoe"), "scalar", "int8").name == "native-scalar-int8"
    assert native(packed("olmoe"), "scalar", "exact").name == "native-scalar"
    assert native(plain("olmoe"), "scalar", "int8").name == "native-scalar"
    assert EngineConfig().precision == "int8"


@pytest.fixture(scope="module", autouse=True)
def cleaned() -> Iterator[None]:
    yield
    folder().cleanup()
