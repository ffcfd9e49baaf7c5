"""The manifest: canonical bytes, a digest that sha256sum gives, and every refusal."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from novamesh_engine.quant.profile import (
    MANIFEST_FILE,
    is_profile,
    read_profile,
    verify,
    write_profile,
)
from novamesh_proto.errors import Code, NovaMeshError
from support.tiny_moe import nova_config


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(nova_config()))
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    write_profile(tmp_path, "nova-tiny", "nf4", ["model.safetensors", "config.json"])
    return tmp_path


def rewrite(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    raw = json.loads((folder / MANIFEST_FILE).read_text())
    change(raw)
    (folder / MANIFEST_FILE).write_text(json.dumps(raw, indent=2, sort_keys=True) + "\n")


def test_the_digest_is_that_of_the_file(folder: Path) -> None:
    profile = read_profile(folder)
    assert is_profile(folder)
    assert profile.digest == hashlib.sha256((folder / MANIFEST_FILE).read_bytes()).digest()
    assert profile.digest_text == f"sha256:{profile.digest.hex()}"
    assert profile.digest_short == profile.digest.hex()[:12]
    assert (profile.name, profile.quant, profile.model_type) == ("nova-tiny", "nf4", "nova")
    assert profile.max_context == 256
    assert profile.active_parameters < profile.parameters
    assert profile.file_names == {"config.json", "model.safetensors"}
    assert profile.size == 7 + (folder / "config.json").stat().st_size
    assert verify(profile) is profile


def test_writing_again_gives_the_same_digest(folder: Path) -> None:
    before = read_profile(folder)
    again = write_profile(folder, "nova-tiny", "nf4", sorted(before.file_names, reverse=True))
    assert again == before


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("model.safetensors", b"weighty", "is not the file that the manifest names"),
        ("model.safetensors", b"weight", "is 6 bytes long, not 7"),
        ("config.json", b"{}", "config.json: is 2 bytes long"),
    ],
)
def test_a_changed_file_is_named(folder: Path, name: str, data: bytes, words: str) -> None:
    (folder / name).write_bytes(data)
    with pytest.raises(NovaMeshError, match=words) as caught:
        verify(read_profile(folder))
    assert caught.value.code is Code.CORRUPT
    assert str(folder / name) in caught.value.message


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(NovaMeshError, match=r"model\.safetensors: cannot be read") as caught:
        verify(read_profile(folder))
    assert caught.value.code is Code.NOT_FOUND


def first(raw: dict[str, Any], **changes: Any) -> None:
    raw["files"][0] |= changes


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda raw: raw.update(format=2), Code.UNSUPPORTED),
        (lambda raw: raw.update(extra=1), Code.CORRUPT),
        (lambda raw: raw.pop("name"), Code.CORRUPT),
        (lambda raw: raw.update(name="../x"), Code.CORRUPT),
        (lambda raw: raw.update(name=3), Code.CORRUPT),
        (lambda raw: raw.update(quant="int3"), Code.CORRUPT),
        (lambda raw: raw.update(model_type=None), Code.CORRUPT),
        (lambda raw: raw.update(parameters=-1), Code.CORRUPT),
        (lambda raw: raw.update(parameters=True), Code.CORRUPT),
        (lambda raw: raw.update(max_context=1.5), Code.CORRUPT),
        (lambda raw: raw.update(files=[]), Code.CORRUPT),
        (lambda raw: raw.update(files={}), Code.CORRUPT),
        (lambda raw: raw["files"].reverse(), Code.CORRUPT),
        (lambda raw: raw["files"].pop(0), Code.CORRUPT),
        (lambda raw: raw["files"].append(raw["files"][1]), Code.CORRUPT),
        (lambda raw: raw["files"].insert(0, "x"), Code.CORRUPT),
        (lambda raw: first(raw, path="../config.json"), Code.CORRUPT),
        (lambda raw: first(raw, path="/etc/passwd"), Code.CORRUPT),
        (lambda raw: first(raw, path=MANIFEST_FILE), Code.CORRUPT),
        (lambda raw: first(raw, path=".hidden"), Code.CORRUPT),
        (lambda raw: first(raw, size=-1), Code.CORRUPT),
        (lambda raw: first(raw, size="7"), Code.CORRUPT),
        (lambda raw: first(raw, sha256="00"), Code.CORRUPT),
        (lambda raw: first(raw, sha256="G" * 64), Code.CORRUPT),
        (lambda raw: first(raw, more=1), Code.CORRUPT),
    ],
)
def test_a_wrong_manifest_is_refused(
    folder: Path, change: Callable[[dict[str, Any]], Any], code: Code
) -> None:
    rewrite(folder, change)
    with pytest.raises(NovaMeshError, match=MANIFEST_FILE) as caught:
        read_profile(folder)
    assert caught.value.code is code
    assert caught.value.hint


def test_another_form_of_the_same_content_is_another_file(folder: Path) -> None:
    raw = json.loads((folder / MANIFEST_FILE).read_text())
    (folder / MANIFEST_FILE).write_text(json.dumps(raw))
    with pytest.raises(NovaMeshError, match="canonical form"):
        read_profile(folder)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_flipped_byte_is_never_the_same_profile(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("flip")
    (folder / "config.json").write_text(json.dumps(nova_config()))
    before = write_profile(folder, "nova-tiny", "none", ["config.json"])
    manifest = bytearray((folder / MANIFEST_FILE).read_bytes())
    at = data.draw(st.integers(0, len(manifest) - 1))
    manifest[at] ^= data.draw(st.integers(1, 255))
    (folder / MANIFEST_FILE).write_bytes(manifest)
    try:
        assert read_profile(folder).digest != before.digest
    except NovaMeshError as error:
        assert MANIFEST_FILE in error.message  # noqa: PT017


def test_no_manifest_says_what_to_name(tmp_path: Path) -> None:
    assert not is_profile(tmp_path)
    with pytest.raises(NovaMeshError, match=MANIFEST_FILE) as caught:
        read_profile(tmp_path)
    assert caught.value.code is Code.MODEL_NOT_FOUND


def test_a_huge_manifest_is_not_read(folder: Path) -> None:
    (folder / MANIFEST_FILE).write_bytes(b" " * (2 << 20))
    with pytest.raises(NovaMeshError, match="is larger than"):
        read_profile(folder)


def test_a_bad_name_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(NovaMeshError, match="is not a model name") as caught:
        write_profile(tmp_path, "Nova Pico", "nf4", ["config.json"])
    assert caught.value.code is Code.BAD_REQUEST
    assert list(tmp_path.iterdir()) == []


def test_reading_a_manifest_loads_no_torch(folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from novamesh_engine.quant.profile import *;"
        f"read_profile(Path({str(folder)!r})); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
