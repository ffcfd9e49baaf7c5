"""Every native operation of every instruction set equals the reference within its bound."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import novamesh_engine
from novamesh_engine.kernels import native, reference
from novamesh_engine.kernels.reference import Kernels
from novamesh_engine.models.config import ModelConfig
from novamesh_engine.quant.codebook import NF4Matrix, dequantize
from support.tiny_moe import Part, PlainKV, make_batch, nova_config, relative

ROOTS = list(novamesh_engine.__path__)
BOUND = 1e-5
LIBRARY = native.find_library(ROOTS)
SETS = native.runnable_sets(native.load_library(LIBRARY)) if LIBRARY else ()
pytestmark = pytest.mark.skipif(not SETS, reason="installed without a C++ compiler")


@pytest.fixture(params=SETS, scope="module")
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return native.load_kernels(ROOTS, request.param)


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def random_nf4(seed: int, *shape: int) -> NF4Matrix:
    rng, (*rows, width) = torch.Generator().manual_seed(seed), shape
    packed = torch.randint(0, 256, (*rows, width // 2), generator=rng, dtype=torch.uint8)
    return NF4Matrix(packed, (torch.rand((*rows, width // 64), generator=rng) * 2).half())


seeds = st.integers(0, 2**31)


@given(st.integers(1, 19), st.integers(1, 150), st.integers(1, 5), seeds)
@settings(max_examples=40, deadline=None)
@pytest.mark.parametrize("kind", ["nf4", "float16", "float32"])
def test_linear(
    kernels: Kernels, kind: str, tokens: int, rows: int, blocks: int, seed: int
) -> None:
    x = random(seed, tokens, blocks * 64)
    weight: Any = random_nf4(seed, rows, blocks * 64)
    if kind != "nf4":
        weight = random(seed + 1, rows, blocks * 64).to(getattr(torch, kind))
    found = kernels.linear(x, weight)
    assert found.shape == (tokens, rows)
    wide = dequantize(weight) if isinstance(weight, NF4Matrix) else weight.float()
    magnitude = x.abs() @ wide.abs().T  # a sum that cancels is only as exact as its terms
    assert float((found - x @ wide.T).norm() / magnitude.norm()) < 1e-6
    assert float((found - reference.linear(x, weight)).norm() / magnitude.norm()) < 1e-6


@given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 3), st.integers(1, 3), seeds)
@settings(max_examples=40, deadline=None)
def test_routed_experts(
    kernels: Kernels, tokens: int, count: int, hidden: int, size: int, seed: int
) -> None:
    hidden, size = hidden * 64, size * 64
    x, router = random(seed, tokens, hidden) * 0.5, random(seed + 1, count, hidden)
    gate_up = random_nf4(seed + 2, count, 2 * size, hidden)
    down = random_nf4(seed + 3, count, hidden, size)
    slots = 1 + seed % count
    weights, ids = kernels.route(x, router, slots)
    wanted, wanted_ids = reference.route(x, router, slots)
    assert torch.equal(ids, wanted_ids)
    assert relative(weights, wanted) < BOUND
    found = kernels.experts(x, (weights, ids), gate_up, down)
    assert relative(found, reference.experts(x, (weights, ids), gate_up, down)) < BOUND
    wide = dequantize(gate_up), dequantize(down)
    assert relative(kernels.experts(x, (weights, ids), *wide), found) < BOUND
    mixed = kernels.experts(x, (weights, ids), gate_up, wide[1])
    assert relative(mixed, found) < BOUND


@given(st.integers(1, 9), st.integers(1, 200), seeds)
@settings(max_examples=20, deadline=None)
def test_norm_and_rotation(kernels: Kernels, tokens: int, half: int, seed: int) -> None:
    x, weight = random(seed, tokens, 2 * half), random(seed + 1, 2 * half)
    found = kernels.rms_norm(x, weight, 1e-5)
    assert relative(found, reference.rms_norm(x, weight, 1e-5)) < BOUND
    heads, angles = random(seed, tokens, 5, 2 * half), random(seed + 2, tokens, half)
    some = heads[:, 1:4]  # strided, as a part of qkv is
    found = kernels.rotate(some, angles.cos(), angles.sin())
    assert relative(found, reference.rotate(some, angles.cos(), angles.sin())) < BOUND


@given(st.integers(1, 12), st.integers(0, 40), st.integers(1, 2), st.integers(1, 3), seeds)
@settings(max_examples=30, deadline=None)
def test_attention(
    kernels: Kernels, new: int, start: int, kv_heads: int, group: int, seed: int
) -> None:
    width = 2 * (1 + seed % 24)
    heads = kv_heads * group
    raw = nova_config(num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=width)
    kv = PlainKV(ModelConfig.from_dict(raw))
    keys, values = (random(seed + i, *kv.keys(0).shape) for i in range(2))
    batch = make_batch(kv, [Part(0, start, range(new)), Part(2, 7, [1]), Part(1, 0, range(3))])
    query = random(seed + 3, new + 4, heads + 1, width)[:, :heads]  # strided, as q of qk is
    found = kernels.attention(query, keys, values, batch, 0.3)
    wanted = reference.attention(query, keys, values, batch, 0.3)
    magnitude = reference.attention(query, keys, values.abs(), batch, 0.3)
    assert float((found - wanted).norm() / magnitude.norm()) < 1e-5


@given(st.integers(2, 20), seeds)
@settings(max_examples=20, deadline=None)
def test_a_token_does_not_depend_on_its_neighbours(
    kernels: Kernels, tokens: int, seed: int
) -> None:
    """Bit for bit: what makes an answer independent of the batch it was computed in."""
    x, weight = random(seed, tokens, 128), random_nf4(seed, 70, 128)
    gate_up, down = random_nf4(seed + 1, 4, 128, 128), random_nf4(seed + 2, 4, 128, 64)
    router, at = random(seed + 3, 4, 128), seed % tokens
    one = x[at : at + 1].clone()
    assert torch.equal(kernels.linear(x, weight)[at : at + 1], kernels.linear(one, weight))
    routed, alone = kernels.route(x, router, 2), kernels.route(one, router, 2)
    together = kernels.experts(x, routed, gate_up, down)[at : at + 1]
    assert torch.equal(together, kernels.experts(one, alone, gate_up, down))
    wide = dequantize(gate_up), dequantize(down)
    together = kernels.experts(x, routed, *wide)[at : at + 1]
    assert torch.equal(together, kernels.experts(one, alone, *wide))


def test_equal_chances_go_to_the_lower_expert(kernels: Kernels) -> None:
    weights, ids = kernels.route(random(1, 3, 64), torch.zeros((5, 64)), 2)
    assert ids.tolist() == [[0, 1]] * 3
    assert torch.equal(weights, torch.full((3, 2), 0.5))


def test_what_cpp_does_not_take_goes_to_the_reference(kernels: Kernels) -> None:
    x, odd = random(1, 3, 24), random(2, 5, 24)
    assert torch.equal(kernels.linear(x, odd), reference.linear(x, odd))
    wide = random(3, 5, 64).bfloat16()
    assert torch.equal(kernels.linear(random(4, 2, 64), wide),
                       reference.linear(random(4, 2, 64), wide))  # fmt: skip
    plain = random(5, 2, 32, 24), random(6, 2, 24, 16)
    routing = kernels.route(x, random(7, 2, 24), 1)
    assert torch.equal(kernels.experts(x, routing, *plain), reference.experts(x, routing, *plain))
    half, ones = x.half(), torch.ones(24)
    assert torch.equal(kernels.rms_norm(half, ones, 0.1), reference.rms_norm(half, ones, 0.1))
    angles = random(8, 3, 4)
    turned = x.half().view(3, 3, 8)
    assert torch.equal(kernels.rotate(turned, angles, angles),
                       reference.rotate(turned, angles, angles))  # fmt: skip
    kv = PlainKV(ModelConfig.from_dict(nova_config(num_attention_heads=2, head_dim=8)))
    cache, query = random(9, *kv.keys(0).shape).half(), random(10, 3, 2, 8)
    batch = make_batch(kv, [Part(0, 0, range(3))])
    assert torch.equal(kernels.attention(query, cache, cache, batch, 1.0),
                       reference.attention(query, cache, cache, batch, 1.0))  # fmt: skip


def test_a_set_is_asked_for_by_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.ISA_VARIABLE, "scalar")
    assert native.load_kernels(ROOTS).name == "native-scalar"
    monkeypatch.delenv(native.ISA_VARIABLE)
    assert native.load_kernels(ROOTS).name == f"native-{SETS[-1]}"


def test_a_set_that_cannot_run_is_refused() -> None:
    with pytest.raises(native.UnusableLibraryError, match="avx9 cannot run here"):
        native.choose_set(SETS, "avx9")


def test_the_library_checks_its_arguments() -> None:
    library = native.load_library(LIBRARY)
    x = (ctypes.c_float * 64)()
    at = ctypes.addressof(x)
    assert library.nm_linear(99, 0, at, 1, at, None, 1, 64, at) == -3
    assert library.nm_linear(0, 0, at, 1, at, None, 1, 63, at) == -2
    with pytest.raises(AssertionError, match="called wrongly"):
        native._done(-2)
    with pytest.raises(MemoryError):
        native._done(-1)


def test_an_expert_or_block_out_of_range_is_not_read(kernels: Kernels) -> None:
    gate_up, down = random_nf4(1, 2, 128, 64), random_nf4(2, 2, 64, 64)
    routing = torch.ones((1, 1)), torch.tensor([[2]])
    with pytest.raises(AssertionError, match="called wrongly"):
        kernels.experts(random(3, 1, 64), routing, gate_up, down)
    kv = PlainKV(ModelConfig.from_dict(nova_config()))
    batch = make_batch(kv, [Part(0, 0, [1])])
    batch.block_tables[0, 0] = 64
    with pytest.raises(AssertionError, match="called wrongly"):
        kernels.attention(random(4, 1, 4, 16), kv.keys(0), kv.values(0), batch, 1.0)


def test_no_library_is_said_so(tmp_path: Path) -> None:
    assert native.find_library([str(tmp_path)]) is None
    with pytest.raises(native.UnusableLibraryError, match="not built"):
        native.load_kernels([str(tmp_path)])


def test_a_file_that_is_no_library_is_said_so(tmp_path: Path) -> None:
    (tmp_path / native.LIBRARY).write_text("not ELF")
    with pytest.raises(native.UnusableLibraryError, match="cannot be used"):
        native.load_kernels([str(tmp_path)])


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_a_library_of_another_abi_is_refused(tmp_path: Path) -> None:
    names = [name for name in native._SIGNATURES if name != "nm_abi_version"]
    source = "".join(f"int {name}(void) {{ return 0; }}\n" for name in names)
    (tmp_path / "old.c").write_text(source + "int nm_abi_version(void) { return 77; }\n")
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-o", str(tmp_path / native.LIBRARY), str(tmp_path / "old.c")],
        check=True,
    )
    with pytest.raises(native.UnusableLibraryError, match="has ABI 77, not 2"):
        native.load_kernels([str(tmp_path)])


def test_shapes_that_do_not_fit_are_refused_before_c(kernels: Kernels) -> None:
    x, nf4 = random(0, 2, 64), random_nf4(1, 4, 64)
    ids, chances = torch.zeros(2, 1, dtype=torch.int64), torch.ones(2, 1)
    down, narrow = random(2, 2, 64, 64), random(3, 2, 64, 64)
    calls = [
        lambda: kernels.rms_norm(x, torch.ones(32), 1e-5),
        lambda: kernels.rotate(random(4, 2, 1, 64), torch.ones(1, 32), torch.ones(1, 32)),
        lambda: kernels.linear(x, random(5, 4, 128)),
        lambda: kernels.linear(x, NF4Matrix(nf4.packed, nf4.absmax[:2])),
        lambda: kernels.route(x, random(6, 4, 128), 2),
        lambda: kernels.experts(x, (chances, ids), narrow, down),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="do not fit"):
            call()
