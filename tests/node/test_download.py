"""Downloads: real sockets, dropped connections, and files that count only when they are whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from novamesh_node import hub
from novamesh_node.download import TRIES, Downloads
from novamesh_proto.errors import Code, NovaMeshError
from support.fake_hub import FakeHub, Refusal

NAME = "org/model"
WEIGHTS = "model.safetensors"
SIZE = 3_000_000


@dataclass
class Ear:
    """Hears everything, and may be told to interrupt."""

    heard: list[tuple[str, int, int]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    interrupt_at: int = 1 << 60

    def receive(self, name: str, position: int, size: int) -> None:
        self.heard.append((name, position, size))
        if position >= self.interrupt_at:
            raise KeyboardInterrupt

    def note(self, text: str) -> None:
        self.notes.append(text)


@dataclass
class Scene:
    fake: FakeHub
    folder: Path
    data: bytes
    ear: Ear = field(default_factory=Ear)
    slept: list[float] = field(default_factory=list)

    def downloads(self) -> Downloads:
        return Downloads(hub.list_repository(NAME, None), self.folder, self.ear, self.slept.append)

    @property
    def part(self) -> Path:
        return self.folder / f"{WEIGHTS}.part"


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Scene]:
    files = tmp_path / "files"
    files.mkdir()
    rng = torch.Generator().manual_seed(0)
    blob = torch.randint(0, 256, (SIZE,), dtype=torch.uint8, generator=rng)
    save_file({"a.weight": blob, "b.weight": blob[:64].clone()}, files / WEIGHTS)
    (files / "config.json").write_text("{}")
    with FakeHub() as fake:
        monkeypatch.setattr(constants, "ENDPOINT", fake.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
        fake.add(NAME, files)
        yield Scene(fake, tmp_path / "down", (files / WEIGHTS).read_bytes())


def test_a_file_arrives_whole_and_once(scene: Scene) -> None:
    downloads = scene.downloads()
    assert downloads.missing_bytes(WEIGHTS) == len(scene.data)
    path = downloads.fetch(WEIGHTS)
    assert path == scene.folder / WEIGHTS
    assert path.read_bytes() == scene.data
    assert not scene.part.exists()
    positions = [position for _, position, _ in scene.ear.heard]
    assert positions == sorted(positions)
    assert (positions[0], positions[-1]) == (0, len(scene.data))
    asked = len(scene.fake.asked)
    assert scene.downloads().fetch(WEIGHTS) == path
    assert downloads.missing_bytes(WEIGHTS) == 0
    assert len(scene.fake.asked) == asked + 1, "only the listing was asked for again"


def test_dropped_connections_are_taken_up_where_they_ended(scene: Scene) -> None:
    scene.fake.drops[WEIGHTS] = [1_000_000, 0, 500_000, 0]
    assert scene.downloads().fetch(WEIGHTS).read_bytes() == scene.data
    ranges = scene.fake.bodies_asked(WEIGHTS)
    starts = [int(each.removeprefix("bytes=").rstrip("-") or 0) for each in ranges]
    assert starts[0] == 0
    assert starts == sorted(starts)
    assert 0 < starts[1] <= 1_000_000
    assert len(scene.slept) == len(scene.ear.notes) == 4
    assert all("trying again in" in note for note in scene.ear.notes)


def test_an_interrupted_download_goes_on_in_the_next_process(scene: Scene) -> None:
    scene.ear.interrupt_at = 1_000_000
    with pytest.raises(KeyboardInterrupt):
        scene.downloads().fetch(WEIGHTS)
    held = scene.part.stat().st_size
    assert 0 < held < len(scene.data)
    scene.ear.interrupt_at = 1 << 60
    downloads = scene.downloads()
    assert downloads.missing_bytes(WEIGHTS) == len(scene.data) - held
    assert downloads.fetch(WEIGHTS).read_bytes() == scene.data
    assert scene.fake.bodies_asked(WEIGHTS)[-1] == f"bytes={held}-"


def test_a_server_without_ranges_sends_all_of_it_again(scene: Scene) -> None:
    scene.fake.ranges = False
    scene.fake.drops[WEIGHTS] = [1_000_000]
    assert scene.downloads().fetch(WEIGHTS).read_bytes() == scene.data


@pytest.mark.parametrize("change", ["shorter", "other", "longer"])
def test_what_the_hub_did_not_name_is_thrown_away(scene: Scene, change: str) -> None:
    other = bytes([scene.data[0] ^ 1]) + scene.data[1:]
    scene.fake.bodies[WEIGHTS] = {
        "shorter": scene.data[:-1], "other": other, "longer": scene.data + b"x",
    }[change]  # fmt: skip
    with pytest.raises(NovaMeshError) as caught:
        scene.downloads().fetch(WEIGHTS)
    assert not (scene.folder / WEIGHTS).exists()
    assert caught.value.code is (Code.UNAVAILABLE if change == "shorter" else Code.CORRUPT)
    del scene.fake.bodies[WEIGHTS]
    assert scene.downloads().fetch(WEIGHTS).read_bytes() == scene.data


def test_a_small_file_has_a_digest_too(scene: Scene) -> None:
    scene.fake.bodies["config.json"] = b"[]"
    with pytest.raises(NovaMeshError) as caught:
        scene.downloads().fetch("config.json")
    assert caught.value.code is Code.CORRUPT


def test_a_limit_on_requests_is_waited_for_if_it_is_short(scene: Scene) -> None:
    scene.fake.refusals["/resolve/"] = [Refusal(429, "", {"Retry-After": "7"}), Refusal(503)]
    assert scene.downloads().fetch(WEIGHTS).read_bytes() == scene.data
    assert scene.slept[0] == 7
    scene.fake.refusals["/resolve/"] = [Refusal(429, "", {"Retry-After": "900"})]
    scene.downloads().remove(WEIGHTS)
    with pytest.raises(NovaMeshError) as caught:
        scene.downloads().fetch(WEIGHTS)
    assert (caught.value.code, caught.value.retry_after_ms) == (Code.BUSY, 900_000)


def test_tries_that_bring_nothing_come_to_an_end(scene: Scene) -> None:
    scene.fake.drops[WEIGHTS] = [0] * 100
    with pytest.raises(NovaMeshError) as caught:
        scene.downloads().fetch(WEIGHTS)
    assert caught.value.code is Code.UNAVAILABLE
    assert len(scene.slept) == TRIES - 1
    scene.fake.drops[WEIGHTS] = [100_000] * 20
    assert scene.downloads().fetch(WEIGHTS).read_bytes() == scene.data


@pytest.mark.parametrize(
    ("refusal", "code"),
    [(Refusal(403, "GatedRepo"), Code.FORBIDDEN), (Refusal(404, "EntryNotFound"), Code.NOT_FOUND)],
)
def test_what_does_not_pass_is_not_tried_again(scene: Scene, refusal: Refusal, code: Code) -> None:
    scene.fake.refusals["/resolve/"] = [refusal]
    with pytest.raises(NovaMeshError) as caught:
        scene.downloads().fetch(WEIGHTS)
    assert caught.value.code is code
    assert not scene.slept


def test_offline_is_no_reason_to_try_again(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    downloads = scene.downloads()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(NovaMeshError, match="HF_HUB_OFFLINE"):
        downloads.fetch(WEIGHTS)
    assert not scene.slept


def test_a_file_in_hugging_faces_cache_is_used_and_stays(scene: Scene, tmp_path: Path) -> None:
    downloads = scene.downloads()
    commit = downloads.listing.commit
    cached = tmp_path / "hf" / "models--org--model" / "snapshots" / commit / WEIGHTS
    cached.parent.mkdir(parents=True)
    cached.write_bytes(scene.data)
    (tmp_path / "hf" / "models--org--model" / "refs").mkdir()
    assert downloads.missing_bytes(WEIGHTS) == 0
    assert downloads.fetch(WEIGHTS) == cached
    downloads.remove(WEIGHTS)
    assert cached.exists()
    assert not scene.fake.bodies_asked(WEIGHTS)
    cached.write_bytes(b"cut off")
    assert downloads.fetch(WEIGHTS) == scene.folder / WEIGHTS


def test_a_draft_longer_than_the_file_is_begun_anew(scene: Scene) -> None:
    scene.folder.mkdir()
    scene.part.write_bytes(bytes(len(scene.data) + 1))
    assert scene.downloads().fetch(WEIGHTS).read_bytes() == scene.data


@pytest.mark.parametrize("ranges", [True, False])
def test_shapes_of_tensors_are_read_without_the_file(scene: Scene, ranges: bool) -> None:
    scene.fake.ranges = ranges
    downloads = scene.downloads()
    assert downloads.tensor_shapes(WEIGHTS) == {"a.weight": (SIZE,), "b.weight": (64,)}
    assert not (scene.folder / WEIGHTS).exists()
    downloads.fetch(WEIGHTS)
    asked = len(scene.fake.asked)
    assert downloads.tensor_shapes(WEIGHTS) == {"a.weight": (SIZE,), "b.weight": (64,)}
    assert len(scene.fake.asked) == asked


def header(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    "head",
    [
        bytes(8), b"\xff" * 8, header(b"nope"), header(b"[]"), header(b'{"a":1}'),
        header(b'{"a":{"shape":["1"]}}'),
    ],
)  # fmt: skip
def test_a_damaged_header_is_refused(scene: Scene, head: bytes) -> None:
    scene.fake.bodies[WEIGHTS] = head + scene.data
    with pytest.raises(NovaMeshError) as caught:
        scene.downloads().tensor_shapes(WEIGHTS)
    assert caught.value.code is Code.CORRUPT
