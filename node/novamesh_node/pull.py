"""`novamesh models pull`: from a name, a repository or a folder to an NF4 profile on the shelf.

Everything that can be refused is refused before the first byte of weights: family, tokenizer, the
names of all tensors, the space on the disk. Then the conversion asks for one file of weights after
the other, and a file goes when its last tensor is through, so that disk and memory stay small.
Rules: whatever ends a pull, the next one of the same model goes on from there, and the bytes of the
profile are the same; nothing that a repository says names a path or runs.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from novamesh_engine.catalogue import BUILTINS, CATALOGUE, find_entry, find_path, locate
from novamesh_engine.files import corrupt, open_file
from novamesh_engine.models.config import CONFIG_FILE, ModelConfig
from novamesh_engine.quant.checkpoint import Checkpoint, FolderCheckpoint
from novamesh_engine.quant.convert import Conversion, Step
from novamesh_engine.quant.profile import (
    MANIFEST_FILE,
    ModelProfile,
    ProfileFile,
    hash_file,
    is_profile,
    read_profile,
)
from novamesh_engine.quant.shards import SHARD_BYTES
from novamesh_engine.tokenizer import Tokenizer
from novamesh_engine.weights.store import TensorFile
from novamesh_node import download, hub
from novamesh_node.download import Downloads
from novamesh_node.shelf import find_missing
from novamesh_node.workspace import (
    Workspace,
    cannot_write,
    check_space,
    discard,
    disk_bytes,
    download_folder,
    gigabytes,
    lock,
    read_origin,
)
from novamesh_proto.errors import Code, NovaMeshError

_SEGMENT: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_REPOSITORY: Final = re.compile(
    rf"({_SEGMENT}/{_SEGMENT})(?:@([A-Za-z0-9][A-Za-z0-9._/-]{{0,127}}))?"
)
_ADDRESSES: Final = ("https://huggingface.co/", "huggingface.co/", "hf.co/", "hf://")
_COPY_BYTES: Final = 1 << 20
_NAMES: Final = (
    f"name one of {', '.join(each.name for each in CATALOGUE)}, "
    "a repository of Hugging Face as org/name, or a folder"
)


class Audience(download.Audience, Protocol):
    """Who is told how a pull goes."""

    def expect(self, download_bytes: int, profile_bytes: int) -> None:
        """What there is to do in all."""
        ...

    def convert(self, step: Step) -> None:
        """How far the conversion is."""
        ...

    def copy(self, step: Step) -> None:
        """How far the copy of a profile is; its files count as shards."""
        ...


@dataclass(frozen=True, slots=True)
class Wish:
    """What somebody asked for. `reference` is a name, org/name, org/name@revision or a folder."""

    reference: str
    name: str | None = None
    revision: str | None = None
    force: bool = False
    keep_download: bool = False


def default_name(text: str) -> str:
    """The name on the shelf that a repository's or a folder's name becomes."""
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._")[:64] or "model"


@dataclass(frozen=True, slots=True)
class Puller:
    """Pulls to one shelf."""

    shelf: Path
    audience: Audience
    shard_bytes: int = SHARD_BYTES

    def pull(self, wish: Wish) -> ModelProfile:
        """The model that was asked for, on the shelf.

        Raises:
            NovaMeshError: BAD_REQUEST, MODEL_NOT_FOUND, UNSUPPORTED, CORRUPT, CONFLICT, STORAGE,
                and as `hub.list_repository`.
        """
        if wish.reference in BUILTINS:
            self.audience.note(f"{wish.reference} is built in: there is nothing to pull")
            return read_profile(locate(wish.reference))
        try:
            return self._pull(wish)
        except OSError as error:
            raise cannot_write(self.shelf, error) from error

    def _pull(self, wish: Wish) -> ModelProfile:
        entry = find_entry(wish.reference)
        if entry is not None:
            return self._pull_repository(wish, entry.repository, entry.name, wish.revision)
        folder = find_path(wish.reference, _NAMES)
        if wish.reference and folder.is_dir():
            if wish.revision is not None:
                raise NovaMeshError(
                    Code.BAD_REQUEST, f"{folder} is a folder, which has no revisions",
                    "leave --revision out",
                )  # fmt: skip
            pull = self._copy_profile if is_profile(folder) else self._pull_folder
            return pull(wish, folder)
        if folder.is_file():
            raise _no_folder(folder)
        reference = wish.reference
        for address in _ADDRESSES:
            reference = reference.removeprefix(address)
        found = _REPOSITORY.fullmatch(reference)
        if found is None:
            raise NovaMeshError(
                Code.MODEL_NOT_FOUND,
                f"{wish.reference[:120]!r} is no model of ours, and no folder",
                _NAMES,
            )
        name = default_name(found[1].split("/")[1])
        return self._pull_repository(wish, found[1], name, found[2] or wish.revision)

    def _pull_repository(
        self, wish: Wish, repository: str, name: str, revision: str | None
    ) -> ModelProfile:
        work = Workspace.of(self.shelf, _chosen(wish, name))
        listing = hub.list_repository(repository, revision)
        origin = {"repository": repository, "commit": listing.commit}
        folder = download_folder(self.shelf, repository, listing.commit)
        with work.locked():
            present = self._present(wish, work, origin)
            if present is not None:
                return present
            with lock(folder, f"another pull downloads {listing.label}"):
                downloads = Downloads(listing, folder, self.audience)
                conversion = self._plan_download(downloads, work, wish.keep_download)
                work.begin(origin)
                conversion.run(work.profile, work.name, self.audience.convert)
                profile = work.install()
                if wish.keep_download:
                    self.audience.note(f"what was downloaded is kept in {folder}")
                else:
                    discard(folder)
            return profile

    def _pull_folder(self, wish: Wish, folder: Path) -> ModelProfile:
        work = Workspace.of(self.shelf, _chosen(wish, default_name(folder.resolve().name)))
        checkpoint = FolderCheckpoint.at(folder)
        identity = hashlib.sha256(checkpoint.identity.encode()).hexdigest()
        origin = {"folder": str(folder.resolve()), "identity": identity}
        with work.locked():
            present = self._present(wish, work, origin)
            if present is not None:
                return present
            conversion = self._plan(checkpoint)
            needed = conversion.size - disk_bytes(work.profile)
            check_space(self.shelf, needed, f"the profile of {folder}")
            self.audience.expect(0, conversion.size)
            work.begin(origin)
            with work.discarded_if_corrupt():
                conversion.run(work.profile, work.name, self.audience.convert)
            return work.install()

    def _copy_profile(self, wish: Wish, folder: Path) -> ModelProfile:
        """A profile is copied as it is: its name is in its manifest, and so in its digest."""
        profile = read_profile(folder)
        work = Workspace.of(self.shelf, _chosen(wish, profile.name))
        origin = {"folder": str(folder.resolve()), "digest": profile.digest_text}
        if work.target.exists() and work.target.samefile(folder):
            return profile
        with work.locked():
            present = self._present(wish, work, origin)
            if present is not None:
                return present
            for error in find_missing(profile).values():
                raise error
            needed = profile.size - disk_bytes(work.profile)
            check_space(self.shelf, needed, f"the profile {folder}")
            self.audience.expect(0, profile.size)
            work.begin(origin)
            work.profile.mkdir(exist_ok=True)
            with work.discarded_if_corrupt():
                self._copy_files(profile, work.profile)
            # The manifest comes last: without it nothing is a profile.
            shutil.copyfile(folder / MANIFEST_FILE, work.profile / MANIFEST_FILE)
            return work.install()

    def _copy_files(self, profile: ModelProfile, target: Path) -> None:
        count, done = len(profile.files), 0
        for number, file in enumerate(profile.files, start=1):
            self.audience.copy(Step(number, count, done, profile.size))
            _copy_file(profile, file, target)
            done += file.size
        self.audience.copy(Step(count, count, done, profile.size))

    def _present(
        self, wish: Wish, work: Workspace, origin: Mapping[str, str]
    ) -> ModelProfile | None:
        """The model, if it is on the shelf and came from the same place."""
        if wish.force or not work.target.exists():
            return None
        if is_profile(work.target) and read_origin(work.target) == origin:
            self.audience.note(f"{work.name} is on the shelf already")
            return read_profile(work.target)
        raise NovaMeshError(
            Code.CONFLICT, f"there is another model {work.name} on the shelf",
            "replace it with --force, or keep both:  --name NAME",
        )  # fmt: skip

    def _plan(self, checkpoint: Checkpoint) -> Conversion:
        """The conversion, of a model that can speak."""
        Tokenizer.load(checkpoint.folder)
        return Conversion(checkpoint, self.shard_bytes)

    def _plan_download(self, downloads: Downloads, work: Workspace, keep: bool) -> Conversion:
        """The conversion of what is to come, if it can be done and there is room for it."""
        try:
            checkpoint = _fetch_small(downloads, keep)
            conversion = self._plan(checkpoint)
        except NovaMeshError:
            if not downloads.has_weights():
                discard(downloads.folder)
            raise
        missing = {name: downloads.missing_bytes(name) for name in set(checkpoint.where.values())}
        to_come, label = sum(missing.values()), downloads.listing.label
        # What is kept stays while all of the profile is made; else a file goes when it is through.
        needed = to_come + conversion.size if keep else conversion.disk_bytes(missing)
        check_space(self.shelf, needed - disk_bytes(work.profile), label)
        what = f"{gigabytes(to_come)} in {len(missing)} files" if to_come else "nothing"
        self.audience.note(f"{label}: {what} to download, {gigabytes(conversion.size)} as NF4")
        self.audience.expect(to_come, conversion.size)
        return conversion


def _copy_file(profile: ModelProfile, file: ProfileFile, target: Path) -> None:
    """One file, hashed on its way; what an earlier pull has copied counts."""
    copy = target / file.path
    if copy.is_file() and copy.stat().st_size == file.size and hash_file(copy) == file.sha256:
        return
    hashed = hashlib.sha256()
    with open_file(profile.path / file.path) as source, copy.open("wb") as sink:
        while data := source.read(_COPY_BYTES):
            hashed.update(data)
            sink.write(data)
    if hashed.hexdigest() != file.sha256:
        raise corrupt(profile.path / file.path, "is not the file that the manifest names")


def _chosen(wish: Wish, name: str) -> str:
    chosen = wish.name or name
    if chosen in BUILTINS:
        raise NovaMeshError(
            Code.CONFLICT, f"{chosen} is the name of a built-in model", "choose another:  --name"
        )
    return chosen


def _no_folder(file: Path) -> NovaMeshError:
    """The error for one of a model's files, or for a model in a single file."""
    hint = f"name a folder with {CONFIG_FILE} and safetensors, or a repository as org/name"
    if (file.parent / CONFIG_FILE).is_file():
        hint = f"name the folder that it is in: {file.absolute().parent}"
    return NovaMeshError(Code.MODEL_NOT_FOUND, f"{file} is a file, and a model is a folder", hint)


def _fetch_small(downloads: Downloads, keep: bool) -> HubCheckpoint:
    """Everything but the weights, which says whether they are worth fetching."""
    downloads.folder.mkdir(parents=True, exist_ok=True)
    for file in downloads.listing.small:
        path = downloads.fetch(file.name)
        if path.parent != downloads.folder:
            shutil.copyfile(path, downloads.folder / file.name)
        if file.name == CONFIG_FILE:
            ModelConfig.from_file(downloads.folder / CONFIG_FILE)
    where = hub.read_index(downloads.listing, downloads.folder)
    if where is None:
        where = dict.fromkeys(downloads.tensor_shapes(hub.SINGLE_FILE), hub.SINGLE_FILE)
    return HubCheckpoint(downloads, where, keep)


@dataclass(slots=True)
class HubCheckpoint:
    """A checkpoint whose files are downloaded when they are asked for, and go when they may."""

    downloads: Downloads
    where: Mapping[str, str]
    keep: bool
    _open: dict[str, TensorFile] = field(default_factory=dict)
    _shapes: dict[str, dict[str, tuple[int, ...]]] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where the small files are."""
        return self.downloads.folder

    @property
    def identity(self) -> str:
        """The commit says every byte."""
        return f"{self.downloads.listing.repository}@{self.downloads.listing.commit}"

    def shape(self, tensor: str) -> tuple[int, ...] | None:
        """The shape of a tensor, or None if there is no such tensor; asks for a header at most."""
        file = self.where.get(tensor)
        if file is None:
            return None
        if file not in self._shapes:
            self._shapes[file] = self.downloads.tensor_shapes(file)
        return self._shapes[file].get(tensor)

    def open(self, name: str) -> TensorFile:
        """A file, once all of it is here."""
        if name not in self._open:
            self._open[name] = TensorFile.map(self.downloads.fetch(name))
        return self._open[name]

    def release(self, name: str) -> None:
        """Give its space back, unless it is to be kept."""
        self._open.pop(name, None)
        if not self.keep:
            self.downloads.remove(name)
