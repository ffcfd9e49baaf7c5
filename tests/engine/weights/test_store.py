"""Hostile files: damaged, cut off, pickled, mismatching; each refused by name."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from novamesh_engine.weights import store
from novamesh_engine.weights.store import INDEX_FILE, TensorFile, TensorStore
from novamesh_proto.errors import Code, NovaMeshError

TENSORS = {
    "a": torch.arange(6, dtype=torch.float32).view(2, 3),
    "b": torch.tensor([1, 2, 3], dtype=torch.uint8),
    "c": torch.empty((0, 4), dtype=torch.float16),
    "d": torch.ones((), dtype=torch.bfloat16),
}


def write(path: Path, header: Any, data: bytes = b"") -> None:
    """A safetensors file from a header as it stands."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def entry(start: int, stop: int, dtype: str = "U8", shape: Any = None) -> dict[str, Any]:
    shape = [stop - start] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def refuse(path: Path, code: Code, words: str) -> None:
    with pytest.raises(NovaMeshError) as caught:
        TensorStore.open(path.parent)
    assert caught.value.code is code
    assert str(path) in caught.value.message
    assert words in caught.value.message
    assert caught.value.hint


def test_what_safetensors_writes_is_read(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors", metadata={"format": "pt"})
    opened = TensorStore.open(tmp_path)
    for name, tensor in TENSORS.items():
        assert torch.equal(opened.take(name, tuple(tensor.shape), tensor.dtype), tensor)


def test_changing_a_tensor_does_not_change_the_file(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    before = (tmp_path / "model.safetensors").read_bytes()
    TensorStore.open(tmp_path).take("a", (2, 3), torch.float32).zero_()
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_a_misaligned_tensor_is_read(tmp_path: Path) -> None:
    header = {"x": entry(0, 1), "y": entry(1, 9, "F32", [2])}
    write(tmp_path / "m.safetensors", header, b"\7" + torch.tensor([1.5, 2.5]).numpy().tobytes())
    found = TensorStore.open(tmp_path).take("y", (2,), torch.float32)
    assert found.tolist() == [1.5, 2.5]


@pytest.mark.parametrize(
    ("header", "data", "words"),
    [
        (b"{", b"", "header is damaged"),
        (b"[]", b"", "header is damaged"),
        (b"\xff\xfe", b"", "header is damaged"),
        (b"[" * 100_000, b"", "header is damaged"),
        (b'{"x": {}, "x": {}}', b"", "header is damaged"),
        ({"x": entry(0, 4)}, b"123", "is cut off"),
        ({"x": entry(0, 4)}, b"12345", "1 bytes too many"),
        ({"x": entry(0, 4), "y": entry(3, 5)}, b"12345", "overlap or leave a gap"),
        ({"x": entry(0, 2), "y": entry(3, 5)}, b"12345", "overlap or leave a gap"),
        ({"x": entry(1, 5)}, b"12345", "overlap or leave a gap"),
        ({"x": entry(0, 4, "F32", [2])}, b"1234", "tensor x has the wrong number of bytes"),
        ({"x": entry(0, 4, shape=[-4])}, b"1234", "the header of tensor x is damaged"),
        ({"x": entry(0, 4, shape=[2.0, 2])}, b"1234", "the header of tensor x is damaged"),
        ({"x": entry(0, 4, shape="4")}, b"1234", "the header of tensor x is damaged"),
        ({"x": entry(0, 1, shape=[1] * 9)}, b"1", "the header of tensor x is damaged"),
        ({"x": entry(4, 0, shape=[4])}, b"1234", "tensor x has the wrong number"),
        ({"x": {"dtype": "U8", "shape": [1], "data_offsets": [0]}}, b"1", "of tensor x"),
        ({"x": {"dtype": "U8", "shape": [1]}}, b"1", "of tensor x is damaged"),
        ({"x": entry(0, 1, shape=[2**63, 2])}, b"1", "tensor x has the wrong number"),
    ],
)
def test_a_damaged_header_is_named(tmp_path: Path, header: Any, data: bytes, words: str) -> None:
    path = tmp_path / "model.safetensors"
    write(path, header, data)
    refuse(path, Code.CORRUPT, words)


@pytest.mark.parametrize("data", [b"", b"1234567", b"\xff" * 8, (10**9).to_bytes(8, "little")])
def test_a_file_without_a_header_is_named(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    refuse(path, Code.CORRUPT, "")


@pytest.mark.parametrize("header", [{"x": entry(0, 1, "F4")}, {"x": 3}, {"x": {"dtype": []}}])
def test_an_unknown_element_type_is_named(tmp_path: Path, header: Any) -> None:
    write(tmp_path / "model.safetensors", header, b"1")
    refuse(tmp_path / "model.safetensors", Code.UNSUPPORTED, "tensor x has element type")


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_under_a_safe_name_is_refused(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(pickle.dumps({"x": 1}, protocol=protocol))
    refuse(path, Code.UNSUPPORTED, "is a pickled checkpoint")


@pytest.mark.parametrize("length", [0x280, 0x380, 0x480])
def test_a_header_that_begins_as_a_pickle_does_is_read(tmp_path: Path, length: int) -> None:
    """The first bytes of a file are its header's length: 640, 896 and 1152 are pickle's marks."""
    text = json.dumps({"x": entry(0, 1)}).encode()
    write(tmp_path / "m.safetensors", text.ljust(length), b"\7")
    assert TensorStore.open(tmp_path).take("x", (1,), torch.uint8).tolist() == [7]


def test_a_torch_archive_under_a_safe_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    torch.save({"x": torch.ones(2)}, path)
    refuse(path, Code.UNSUPPORTED, "is a pickled checkpoint")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_a_folder_of_pickles_is_refused_unopened(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"anything")
    refuse(tmp_path / name, Code.UNSUPPORTED, "can run code")


def test_an_empty_or_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(NovaMeshError, match="holds no usable"):
        TensorStore.open(tmp_path)
    with pytest.raises(NovaMeshError, match="no such folder") as caught:
        TensorStore.open(tmp_path / "none")
    assert caught.value.code is Code.MODEL_NOT_FOUND


def save_shards(folder: Path, weight_map: Any) -> Path:
    save_file({"a": TENSORS["a"]}, folder / "one.safetensors")
    save_file({"b": TENSORS["b"]}, folder / "two.safetensors")
    (folder / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))
    return folder / INDEX_FILE


def test_shards_are_read_by_index_and_without(tmp_path: Path) -> None:
    index = save_shards(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    assert set(TensorStore.open(tmp_path).files) == {"a", "b"}
    index.unlink()
    assert set(TensorStore.open(tmp_path).files) == {"a", "b"}


@pytest.mark.parametrize(
    ("weight_map", "code", "words"),
    [
        ({"a": "../one.safetensors"}, Code.CORRUPT, "not a plain name"),
        ({"a": "/one.safetensors"}, Code.CORRUPT, "not a plain name"),
        ({"a": "x\0.safetensors"}, Code.CORRUPT, "not a plain name"),
        ({"a": "config.json"}, Code.CORRUPT, "not a plain name"),
        ({"a": 3}, Code.CORRUPT, "weight_map is damaged"),
        ({}, Code.CORRUPT, "no readable weight_map"),
        ([], Code.CORRUPT, "no readable weight_map"),
    ],
)
def test_a_hostile_index_is_named(tmp_path: Path, weight_map: Any, code: Code, words: str) -> None:
    refuse(save_shards(tmp_path, weight_map), code, words)


def test_an_index_of_pickles_or_missing_files_names_them(tmp_path: Path) -> None:
    save_shards(tmp_path, {"a": "pytorch_model-00001.bin"})
    refuse(tmp_path / "pytorch_model-00001.bin", Code.UNSUPPORTED, "is pickled")
    save_shards(tmp_path, {"a": "three.safetensors"})
    refuse(tmp_path / "three.safetensors", Code.NOT_FOUND, "is missing")
    save_shards(tmp_path, {"b": "one.safetensors"})
    refuse(tmp_path / "one.safetensors", Code.CORRUPT, "tensor b is missing")


def test_a_damaged_index_is_named(tmp_path: Path) -> None:
    for text, words in (("{", "is not JSON"), ("{}", "no readable weight_map")):
        (tmp_path / INDEX_FILE).write_text(text)
        refuse(tmp_path / INDEX_FILE, Code.CORRUPT, words)


def test_a_pipe_under_a_models_name_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")
    refuse(tmp_path / "model.safetensors", Code.CORRUPT, "is not a regular file")


def test_a_tensor_in_two_files_is_named(tmp_path: Path) -> None:
    save_file({"a": TENSORS["a"]}, tmp_path / "one.safetensors")
    save_file({"a": TENSORS["a"]}, tmp_path / "two.safetensors")
    refuse(tmp_path / "two.safetensors", Code.CORRUPT, "tensor a is also in one.safetensors")


def test_only_the_files_that_count_are_opened(tmp_path: Path) -> None:
    index = save_shards(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    opened = TensorStore.open(tmp_path, frozenset({"one.safetensors", "config.json"}))
    assert set(opened.files) == {"a"}
    with pytest.raises(NovaMeshError, match=r"names two\.safetensors, which the manifest does not"):
        TensorStore.open(tmp_path, frozenset({index.name, "one.safetensors"}))


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "words"),
    [
        ("z", (1,), torch.float32, "tensor z is missing"),
        ("a", (3, 2), torch.float32, r"model\.safetensors: tensor a has shape \(2, 3\)"),
        ("a", (2, 3), torch.float16, "tensor a is float32, not float16"),
    ],
)
def test_another_tensor_than_wanted_is_named(
    tmp_path: Path, name: str, shape: tuple[int, ...], dtype: torch.dtype, words: str
) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    with pytest.raises(NovaMeshError, match=words) as caught:
        TensorStore.open(tmp_path).take(name, shape, dtype)
    assert caught.value.code is Code.CORRUPT


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_no_numbers_are_named(tmp_path: Path, value: float) -> None:
    save_file({"a": torch.tensor([1.0, value])}, tmp_path / "model.safetensors")
    with pytest.raises(NovaMeshError, match="tensor a holds values that are no numbers"):
        TensorStore.open(tmp_path).take_finite("a", (2,), torch.float32)


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_any_damage_gives_tensors_or_our_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("damage") / "model.safetensors"
    save_file(TENSORS, path)
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
    try:
        file = TensorFile.map(path)
        for name in file.entries:
            file.tensor(name).clone()
    except NovaMeshError as error:
        assert str(path) in error.message  # noqa: PT017


def test_an_index_has_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = save_shards(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"})
    monkeypatch.setattr(store, "FILES_MAX", 1)
    refuse(index, Code.CORRUPT, "names more than 1 files")
    monkeypatch.setattr(store, "INDEX_BYTES_MAX", 10)
    refuse(index, Code.CORRUPT, "is larger than 10 bytes")


def test_a_tensor_that_was_looked_at_is_mapped_anew(tmp_path: Path) -> None:
    wide = torch.arange(
        40_000, dtype=torch.float32
    )  # some pages, between tensors that share theirs
    save_file(
        {"a": torch.ones(3), "b": wide, "c": torch.full((5,), 7.0)}, tmp_path / "model.safetensors"
    )
    store = TensorStore.open(tmp_path)
    taken = store.take_finite("b", (40_000,), torch.float32)
    assert torch.equal(taken, wide)
    assert torch.equal(store.take_finite("c", (5,), torch.float32), torch.full((5,), 7.0))
    assert torch.equal(taken, wide)
