"""The Hub: what of a repository counts, and each of its refusals in our words."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from novamesh_node import hub
from novamesh_proto.errors import Code, NovaMeshError
from support.fake_hub import FakeHub, Refusal

NAME = "org/model"


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    with FakeHub() as fake:
        monkeypatch.setattr(constants, "ENDPOINT", fake.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        (tmp_path / "files").mkdir()
        (tmp_path / "files" / "config.json").write_text("{}")
        yield fake


def test_only_files_that_a_profile_needs_are_listed(there: FakeHub, tmp_path: Path) -> None:
    names = ("a.safetensors", "pytorch_model.bin", "modeling.py", "tokenizer.json", "README.md")
    for name in names:
        (tmp_path / "files" / name).write_bytes(name.encode() * 1000)
    commit = there.add(
        NAME, tmp_path / "files", **{"../../evil.safetensors": b"x", "b/c.json": b""}
    )
    listing = hub.list_repository(NAME, None)
    assert (listing.commit, listing.repository) == (commit, NAME)
    assert set(listing.files) == {"a.safetensors", "config.json", "tokenizer.json"}
    weights = b"a.safetensors" * 1000
    assert listing.files["a.safetensors"].size == len(weights)
    assert listing.files["a.safetensors"].sha256 == hashlib.sha256(weights).hexdigest()
    assert listing.files["config.json"].sha256 == ""
    assert [file.name for file in listing.small] == ["config.json", "tokenizer.json"]
    assert there.asked[-1].authorization == "Bearer hf_secret"


def test_a_revision_is_one_commit(there: FakeHub, tmp_path: Path) -> None:
    first = there.add(NAME, tmp_path / "files")
    (tmp_path / "files" / "config.json").write_text("{ }")
    second = there.add(NAME, tmp_path / "files")
    assert hub.list_repository(NAME, None).commit == second
    assert hub.list_repository(NAME, first).commit == first
    with pytest.raises(NovaMeshError, match="no such revision") as caught:
        hub.list_repository(NAME, "v9")
    assert caught.value.code is Code.NOT_FOUND


@pytest.mark.parametrize(
    ("refusal", "code", "says"),
    [
        (Refusal(401, "RepoNotFound"), Code.MODEL_NOT_FOUND, "or it is private"),
        (Refusal(404, "RepoNotFound"), Code.MODEL_NOT_FOUND, "or it is private"),
        (Refusal(403, "GatedRepo"), Code.FORBIDDEN, "gated"),
        (Refusal(403), Code.FORBIDDEN, "this token"),
        (Refusal(429, "", {"Retry-After": "120"}), Code.BUSY, "too many requests"),
        (Refusal(500), Code.UNAVAILABLE, "status 500"),
        (Refusal(503), Code.UNAVAILABLE, "status 503"),
    ],
)
def test_a_refusal_says_what_to_do(
    there: FakeHub, tmp_path: Path, refusal: Refusal, code: Code, says: str
) -> None:
    there.add(NAME, tmp_path / "files")
    there.refusals["/api/"] = [refusal]
    with pytest.raises(NovaMeshError, match=says) as caught:
        hub.list_repository(NAME, None)
    assert caught.value.code is code
    assert caught.value.hint
    assert caught.value.retry_after_ms == (120_000 if refusal.status == 429 else 0)


def test_a_hub_that_cannot_be_reached_is_named(there: FakeHub) -> None:
    there.stop()
    with pytest.raises(NovaMeshError, match=f"cannot reach {there.url}") as caught:
        hub.list_repository(NAME, None)
    assert caught.value.code is Code.UNAVAILABLE


def test_offline_is_said_and_not_tried(there: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(NovaMeshError, match="HF_HUB_OFFLINE is set") as caught:
        hub.list_repository(NAME, None)
    assert caught.value.code is Code.UNAVAILABLE
    assert not there.asked


@pytest.mark.parametrize(
    ("listing", "code"),
    [
        ({"sha": "main"}, Code.CORRUPT),
        ({"sha": None}, Code.CORRUPT),
        ({"siblings": [{"rfilename": f"{n}.safetensors", "size": 1} for n in range(5000)]},
         Code.CORRUPT),
        ({"siblings": [{"size": 1}]}, Code.CORRUPT),
        ({"siblings": []}, Code.UNSUPPORTED),
        ({"siblings": [{"rfilename": "config.json", "size": 1 << 60}]}, Code.UNSUPPORTED),
        ({"siblings": [{"rfilename": "config.json", "size": "9"}]}, Code.UNSUPPORTED),
    ],
)  # fmt: skip
def test_an_answer_that_makes_no_sense_is_refused(
    there: FakeHub, tmp_path: Path, listing: dict[str, object], code: Code
) -> None:
    there.add(NAME, tmp_path / "files")
    there.listing = listing
    with pytest.raises(NovaMeshError) as caught:
        hub.list_repository(NAME, None)
    assert caught.value.code is code


@pytest.mark.parametrize("name", ["a/b/c", "-bad/name", "a/..", "org/na me"])
def test_what_is_no_repository_is_a_bad_request(there: FakeHub, name: str) -> None:
    with pytest.raises(NovaMeshError) as caught:
        hub.list_repository(name, None)
    assert caught.value.code is Code.BAD_REQUEST


@pytest.mark.parametrize(
    "where",
    [{}, [], None, {"t": 1}, {"t": "x.bin"}, {"t": "../a.safetensors"}, {"t": "c.safetensors"}],
)
def test_an_index_names_only_files_of_the_repository(
    there: FakeHub, tmp_path: Path, where: object
) -> None:
    index = tmp_path / "files" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    (tmp_path / "files" / "a.safetensors").write_bytes(b"a")
    there.add(NAME, tmp_path / "files")
    listing = hub.list_repository(NAME, None)
    with pytest.raises(NovaMeshError) as caught:
        hub.read_index(listing, tmp_path / "files")
    assert caught.value.code is Code.CORRUPT
    index.write_text(json.dumps({"weight_map": {"t": "a.safetensors"}}))
    assert hub.read_index(listing, tmp_path / "files") == {"t": "a.safetensors"}


def test_a_repository_without_safetensors_is_refused(there: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "files" / "pytorch_model.bin").write_bytes(b"pickle")
    there.add(NAME, tmp_path / "files")
    with pytest.raises(NovaMeshError, match=r"no model\.safetensors") as caught:
        hub.read_index(hub.list_repository(NAME, None), tmp_path / "files")
    assert caught.value.code is Code.UNSUPPORTED
