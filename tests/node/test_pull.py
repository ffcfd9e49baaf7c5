"""Pulling: refusals before the first byte of weights, resumption anywhere, the same bytes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from novamesh_engine.catalogue import BUILTINS
from novamesh_engine.quant.checkpoint import FolderCheckpoint
from novamesh_engine.quant.convert import Conversion, Step
from novamesh_engine.quant.profile import read_profile, verify
from novamesh_node.pull import Puller, Wish, default_name
from novamesh_node.workspace import DOWNLOADS, PULLS, lock, read_origin
from novamesh_proto.errors import Code, NovaMeshError
from support.fake_hub import FakeHub
from support.tiny_engine import save_tiny
from support.tiny_profile import save_tiny_profile

REPOSITORY = "Some-Org/Tiny_MoE"
SMALL = 20_000  # bytes of a shard


@dataclass
class Ear:
    """Hears everything; raises at an event if it is told to."""

    events: int = 0
    stop_at: int = 1 << 60
    notes: list[str] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    copies: list[Step] = field(default_factory=list)
    most_bytes: int = 0
    watched: Path | None = None

    def note(self, text: str) -> None:
        self.notes.append(text)

    def expect(self, download_bytes: int, profile_bytes: int) -> None:
        self._count()

    def receive(self, name: str, position: int, size: int) -> None:
        self._count()

    def convert(self, step: Step) -> None:
        self.steps.append(step)
        self._count()

    def copy(self, step: Step) -> None:
        self.copies.append(step)

    def _count(self) -> None:
        self.events += 1
        if self.watched is not None:
            found = [*self.watched.rglob("*.safetensors"), *self.watched.rglob("*.part")]
            held = sum(path.stat().st_size for path in found)
            self.most_bytes = max(self.most_bytes, held)
        if self.events == self.stop_at:
            raise KeyboardInterrupt


def cut(folder: Path) -> None:
    """The weights of a plain folder, a file a layer, as large checkpoints are kept."""
    tensors = load_file(folder / "model.safetensors")
    where = {
        name: f"model-{name.split('.')[2] if '.layers.' in name else 'x'}.safetensors"
        for name in tensors
    }
    for file in set(where.values()):
        save_file({name: tensors[name] for name in tensors if where[name] == file}, folder / file)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    folder = save_tiny(tmp_path / "plain", num_hidden_layers=5)
    cut(folder)
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    (folder / "modeling_tiny.py").write_text("raise SystemExit")
    return folder


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, plain: Path) -> Iterator[FakeHub]:
    with FakeHub() as fake:
        monkeypatch.setattr(constants, "ENDPOINT", fake.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
        fake.add(REPOSITORY, plain)
        yield fake


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    return tmp_path / "shelf"


def pull(shelf: Path, reference: object, ear: Ear | None = None, **wish: object) -> str:
    """The digest of what was pulled."""
    made = Wish(str(reference), **wish)  # type: ignore[arg-type]
    return verify(Puller(shelf, ear or Ear(), SMALL).pull(made)).digest_text


def expected(plain: Path, folder: Path, name: str = "tiny_moe") -> str:
    return Conversion(FolderCheckpoint.at(plain), SMALL).run(folder, name).digest_text


def weights_asked(fake: FakeHub) -> list[str]:
    return [each.name for each in fake.asked if each.is_body and each.name.endswith(".safetensors")]


def test_a_repository_becomes_a_profile_and_leaves_nothing_else(
    there: FakeHub, shelf: Path, plain: Path, tmp_path: Path
) -> None:
    ear = Ear()
    digest = pull(shelf, REPOSITORY, ear)
    assert digest == expected(plain, tmp_path / "expected")
    assert [path.name for path in shelf.iterdir()] == ["tiny_moe"]
    asked = {each.name for each in there.asked}
    assert not {"pytorch_model.bin", "modeling_tiny.py"} & asked
    assert sorted(weights_asked(there)) == sorted(set(weights_asked(there))), "each file once"
    assert read_origin(shelf / "tiny_moe")["repository"] == REPOSITORY
    assert "to download" in ear.notes[0]
    assert ear.steps[-1].written == ear.steps[-1].total
    before = len(weights_asked(there))
    assert pull(shelf, f"https://huggingface.co/{REPOSITORY}@main", ear) == digest
    assert ear.notes[-1] == "tiny_moe is on the shelf already"
    assert len(weights_asked(there)) == before


def test_wherever_it_is_interrupted_it_goes_on_and_nothing_comes_twice(
    there: FakeHub, shelf: Path, plain: Path, tmp_path: Path
) -> None:
    wanted, ear = expected(plain, tmp_path / "expected"), Ear()
    pull(shelf, REPOSITORY, ear)
    sizes = {path.name: path.stat().st_size for path in plain.glob("*.safetensors")}
    for stop_at in range(1, ear.events, ear.events // 6):
        shutil.rmtree(shelf)
        there.asked.clear()
        with pytest.raises(KeyboardInterrupt):
            pull(shelf, REPOSITORY, Ear(stop_at=stop_at))
        assert not (shelf / "tiny_moe").exists()
        assert pull(shelf, REPOSITORY) == wanted
        for name in sizes:
            ranges = there.bodies_asked(name)
            assert ranges[0] == ""
            assert all(int(each[6:-1]) > 0 for each in ranges[1:]), "what was here came again"


def test_files_go_when_they_are_through(there: FakeHub, shelf: Path, plain: Path) -> None:
    sizes = [path.stat().st_size for path in plain.glob("*.safetensors")]
    ear = Ear(watched=shelf)
    pull(shelf, REPOSITORY, ear)
    made = sum(path.stat().st_size for path in (shelf / "tiny_moe").glob("*.safetensors"))
    kept = Ear(watched=shelf / DOWNLOADS)
    pull(shelf, REPOSITORY, kept, name="other", keep_download=True)
    assert kept.most_bytes == sum(sizes)
    assert ear.most_bytes < sum(sizes) * 0.7 + made
    held = next((shelf / DOWNLOADS).iterdir())
    assert sum(path.stat().st_size for path in held.glob("*.safetensors")) == sum(sizes)
    asked = len(weights_asked(there))
    pull(shelf, REPOSITORY, name="third")
    assert len(weights_asked(there)) == asked, "what was kept is used"


Usage = namedtuple("Usage", ["total", "used", "free"])


@pytest.mark.parametrize("keep", [False, True])
def test_a_disk_that_is_too_small_is_said_before_any_weights_come(
    there: FakeHub, shelf: Path, monkeypatch: pytest.MonkeyPatch, keep: bool
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9 - 1, (256 << 20) + 1000))
    with pytest.raises(NovaMeshError, match="does not fit on the disk of") as caught:
        pull(shelf, REPOSITORY, keep_download=keep)
    assert caught.value.code is Code.STORAGE
    assert "free" in caught.value.hint
    assert not weights_asked(there)


def test_a_family_that_we_do_not_run_is_refused_before_any_weights_come(
    there: FakeHub, shelf: Path, plain: Path
) -> None:
    raw = json.loads((plain / "config.json").read_text())
    (plain / "config.json").write_text(json.dumps(raw | {"model_type": "llama"}))
    there.add(REPOSITORY, plain)
    with pytest.raises(NovaMeshError, match="model_type") as caught:
        pull(shelf, REPOSITORY)
    assert caught.value.code is Code.UNSUPPORTED
    assert not weights_asked(there)
    assert not list(shelf.iterdir()), "nothing is left of what was not begun"


def test_a_model_that_cannot_speak_is_refused_before_any_weights_come(
    there: FakeHub, shelf: Path, plain: Path
) -> None:
    (plain / "tokenizer.json").unlink()
    there.add(REPOSITORY, plain)
    with pytest.raises(NovaMeshError, match=r"tokenizer\.json"):
        pull(shelf, REPOSITORY)
    assert not weights_asked(there)


def test_a_missing_tensor_is_named_before_any_weights_come(
    there: FakeHub, shelf: Path, plain: Path
) -> None:
    path = plain / "model.safetensors.index.json"
    where = json.loads(path.read_text())["weight_map"]
    del where["model.norm.weight"]
    path.write_text(json.dumps({"weight_map": where}))
    there.add(REPOSITORY, plain)
    with pytest.raises(NovaMeshError, match=r"model\.norm\.weight is missing"):
        pull(shelf, REPOSITORY)
    assert not weights_asked(there)


def test_a_single_file_needs_no_index(there: FakeHub, shelf: Path, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "single")
    raw = json.loads((folder / "config.json").read_text())
    raw.pop("head_dim", None)  # the weights tell it, and only their header is asked for first
    (folder / "config.json").write_text(json.dumps(raw))
    there.add("org/single", folder)
    assert pull(shelf, "org/single") == expected(folder, tmp_path / "expected", "single")


def test_a_folder_is_converted_and_left_alone(shelf: Path, plain: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in plain.iterdir()}
    digest = pull(shelf, plain, name="tiny_moe")
    assert digest == expected(plain, tmp_path / "expected")
    assert {path.name: path.read_bytes() for path in plain.iterdir()} == before
    ear = Ear()
    assert pull(shelf, plain, ear, name="tiny_moe") == digest
    assert ear.notes == ["tiny_moe is on the shelf already"]
    os.utime(plain / "model-0.safetensors", (1, 1))
    with pytest.raises(NovaMeshError, match="another model tiny_moe") as caught:
        pull(shelf, plain, name="tiny_moe")
    assert caught.value.code is Code.CONFLICT
    assert pull(shelf, plain, name="tiny_moe", force=True) == digest
    with pytest.raises(NovaMeshError, match="no revisions"):
        pull(shelf, plain, revision="main")


def test_a_profile_is_copied_as_it_is(shelf: Path, tmp_path: Path) -> None:
    profile = save_tiny_profile(tmp_path / "made", "mine")
    (profile.path / "notes.txt").write_text("not part of it")
    ear = Ear()
    assert pull(shelf, profile.path, ear) == profile.digest_text
    assert not ear.steps, "nothing is converted"
    assert [step.shard for step in ear.copies] == [1, 2, 3, 4, 4]
    assert (ear.copies[0].written, ear.copies[-1].written) == (0, profile.size)
    assert not (shelf / "mine" / "notes.txt").exists()
    assert pull(shelf, shelf / "mine") == profile.digest_text
    assert pull(shelf, profile.path, name="again") == profile.digest_text
    assert read_profile(shelf / "again").name == "mine"


def test_a_damaged_profile_is_not_copied(shelf: Path, tmp_path: Path) -> None:
    profile = save_tiny_profile(tmp_path / "made", "mine")
    weights = profile.path / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(NovaMeshError, match=str(weights)) as caught:
        pull(shelf, profile.path)
    assert caught.value.code is Code.CORRUPT
    assert not list(shelf.iterdir()), "what can never succeed is not kept"
    weights.unlink()
    with pytest.raises(NovaMeshError, match=str(weights)) as missing:
        pull(shelf, profile.path)
    assert missing.value.code is Code.NOT_FOUND
    assert not list(shelf.iterdir())


def test_a_damaged_checkpoint_leaves_nothing(
    shelf: Path, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: object) -> None:
        raise NovaMeshError(Code.CORRUPT, "a weight is no number", "get it again")

    monkeypatch.setattr(Conversion, "run", run)
    with pytest.raises(NovaMeshError, match="no number"):
        pull(shelf, plain)
    assert not list(shelf.iterdir())


def test_two_pulls_of_one_model_do_not_meet(there: FakeHub, shelf: Path) -> None:
    with (
        lock(shelf / PULLS / "tiny_moe", ""),
        pytest.raises(NovaMeshError, match=rf"works on tiny_moe \(process {os.getpid()}\)") as one,
    ):
        pull(shelf, REPOSITORY)
    assert one.value.code is Code.CONFLICT
    commit = [*there.repositories[REPOSITORY]][-1]
    with (
        lock(shelf / DOWNLOADS / f"Some-Org--Tiny_MoE@{commit}", ""),
        pytest.raises(NovaMeshError, match="another pull downloads") as two,
    ):
        pull(shelf, REPOSITORY, name="other")
    assert two.value.code is Code.CONFLICT


def test_what_is_built_in_is_not_pulled(shelf: Path, plain: Path) -> None:
    ear = Ear()
    pull(shelf, BUILTINS[0], ear)
    assert "built in" in ear.notes[0]
    with pytest.raises(NovaMeshError, match="built-in"):
        pull(shelf, plain, name=BUILTINS[0])
    assert not shelf.exists()


@pytest.mark.parametrize(
    "reference",
    ["nothing", "./nothing", "/nothing", "a/b/c", "~/nothing", "", "@", "~nosuchuser/x", "x" * 300],
)
def test_what_is_nothing_says_what_could_be(shelf: Path, reference: str) -> None:
    with pytest.raises(NovaMeshError) as caught:
        pull(shelf, reference)
    assert caught.value.code is Code.MODEL_NOT_FOUND
    assert "phi-mini-moe-instruct" in caught.value.hint


def test_a_file_is_said_to_be_one(shelf: Path, plain: Path, tmp_path: Path) -> None:
    alone = tmp_path / "model.gguf"
    alone.write_bytes(b"GGUF")
    for file, hint in (
        (alone, "name a folder with config.json"),
        (plain / "tokenizer.json", f"name the folder that it is in: {plain}"),
    ):
        with pytest.raises(NovaMeshError, match="is a file, and a model is a folder") as caught:
            pull(shelf, file)
        assert caught.value.code is Code.MODEL_NOT_FOUND
        assert caught.value.hint.startswith(hint)


@pytest.mark.parametrize("name", ["../evil", "A", "", ".pull", "a/b", "x" * 65])
def test_a_name_is_a_name(shelf: Path, plain: Path, name: str) -> None:
    with contextlib.suppress(NovaMeshError):
        pull(shelf, plain, name=name or "-")
    assert not shelf.exists()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Phi-mini-MoE-instruct", "phi-mini-moe-instruct"),
        ("Tiny_MoE", "tiny_moe"),
        ("Ünïcode  Model!", "n-code-model"),
        ("...", "model"),
        ("x" * 99, "x" * 64),
    ],
)
def test_default_names(text: str, name: str) -> None:
    assert default_name(text) == name


def test_a_killed_pull_goes_on(there: FakeHub, plain: Path, tmp_path: Path) -> None:
    """kill -9 in the middle of a file of weights, through the command line."""
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(tmp_path), "HF_HOME": str(tmp_path / "hf"),
        "HF_ENDPOINT": there.url, "NOVAMESH_HOME": str(tmp_path / "home"),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }  # fmt: skip
    command = [sys.executable, "-m", "novamesh", "models", "pull", REPOSITORY]
    there.slow_s = 0.05
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    downloads = tmp_path / "home" / "cache" / "models" / DOWNLOADS
    deadline = time.monotonic() + 90
    while not any(path.stat().st_size for path in downloads.glob("*/*.safetensors.part")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    there.slow_s = 0.0
    there.asked.clear()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    name, digest = done.stdout.split()
    one_shard = Conversion(FolderCheckpoint.at(plain)).run(tmp_path / "expected", "tiny_moe")
    assert (name, digest) == ("tiny_moe", one_shard.digest_text)
    assert any(each.range for each in there.asked if each.name.endswith(".safetensors"))
