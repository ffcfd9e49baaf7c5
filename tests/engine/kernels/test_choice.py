"""Choosing what computes: once, never failing for want of speed, and saying why."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import novamesh_engine
from novamesh_engine.kernels import choice
from novamesh_engine.kernels.library import LIBRARY, UnusableLibraryError, find_library
from novamesh_engine.models.decoder import Decoder
from novamesh_engine.weights.load import load_model
from support.tiny_moe import save_nova

BUILT = find_library(list(novamesh_engine.__path__)) is not None


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    choice._find.cache_clear()
    yield
    choice._find.cache_clear()


@pytest.fixture
def decoder(tmp_path: Path) -> Decoder:
    save_nova(tmp_path, hidden_size=64, moe_intermediate_size=64, head_dim=32)
    return load_model(tmp_path).decoder


@pytest.mark.skipif(not BUILT, reason="installed without a C++ compiler")
def test_native_kernels_where_they_were_built(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(choice.ISA_VARIABLE, raising=False)
    found = choice.look()
    assert (found.isa, found.why) == (found.runnable[-1], "the best this CPU has")
    bound = choice.bind(decoder)
    assert (bound.name, bound.why) == (f"native-{found.isa}", "")  # these weights are not packed
    monkeypatch.setenv(choice.ISA_VARIABLE, "scalar")
    found = choice.look()
    assert (found.isa, found.why, found.hint) == ("scalar", "NOVAMESH_ISA asks for it", "")
    assert choice.bind(decoder).name == "native-scalar"
    assert choice.open_native(3).threads == 3


@pytest.mark.skipif(not BUILT, reason="installed without a C++ compiler")
def test_what_cpp_does_not_take_is_computed_by_torch(decoder: Decoder) -> None:
    wide = Decoder(
        decoder.config, decoder.embedding.bfloat16(), decoder.rotary, decoder.layers,
        decoder.norm, decoder.head,
    )  # fmt: skip
    found = choice.bind(wide)
    assert isinstance(found, choice.ReferenceForward)
    assert "torch.bfloat16" in found.why


def test_another_device_gets_the_reference(decoder: Decoder) -> None:
    found = choice.bind(decoder, "cuda")
    assert (found.name, isinstance(found, choice.ReferenceForward)) == ("torch", True)
    assert found.why == choice.look("cuda").why == "torch cannot open this card"


def test_without_a_library_torch_serves_and_doctor_hears_why(
    decoder: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(novamesh_engine, "__path__", [str(tmp_path / "empty")])
    found = choice.bind(decoder)
    assert isinstance(found, choice.ReferenceForward)
    assert found.why.startswith("not built: no C++ compiler")
    looked = choice.look()
    assert (looked.name, looked.runnable, looked.why) == ("torch", (), found.why)
    assert looked.hint.startswith("install a C++ compiler")
    with pytest.raises(UnusableLibraryError):
        choice.open_native()


def test_a_library_that_is_no_library_is_to_be_installed_again(
    decoder: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / LIBRARY).write_bytes(b"no library")
    monkeypatch.setattr(novamesh_engine, "__path__", [str(tmp_path)])
    found = choice.look()
    assert f"{tmp_path / LIBRARY} cannot be used" in found.why
    assert found.hint == "reinstall novamesh for the faster kernels"
    assert choice.bind(decoder).why == found.why


@pytest.mark.skipif(not BUILT, reason="installed without a C++ compiler")
def test_a_wrong_set_in_the_environment_is_told_by_its_name(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(choice.ISA_VARIABLE, "avx9")
    found = choice.look()
    assert found.name == "torch"
    assert found.why.startswith("NOVAMESH_ISA is avx9: instruction set avx9 cannot run here")
    assert found.hint.startswith("unset NOVAMESH_ISA, or set it to one of scalar")
    assert choice.bind(decoder).why == found.why


def test_an_unknown_set_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    if not BUILT:
        pytest.skip("installed without a C++ compiler")
    with pytest.raises(UnusableLibraryError, match="avx9 cannot run here"):
        choice.open_native(isa="avx9")
