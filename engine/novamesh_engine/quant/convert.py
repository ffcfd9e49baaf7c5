"""A plain Hugging Face MoE checkpoint to an NF4 profile folder, a matrix at a time.

bitsandbytes quantizes, so that its bytes are ours by construction. Rules: a few million weights are
unpacked at a time, whatever the model's size; shards are written in order, the manifest last; the
same checkpoint gives the same bytes, interrupted or not. A conversion that was cut off goes on: its
state names the shards that are whole, they are hashed again, and only the rest is made. This is the
one module that needs bitsandbytes, and nothing imports it to serve.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import bitsandbytes.functional as bnb
import torch
from torch import Tensor

from novamesh_engine.files import corrupt, open_file, parse_object, read_bytes
from novamesh_engine.models.config import CONFIG_BYTES_MAX, CONFIG_FILE, ModelConfig
from novamesh_engine.quant.checkpoint import Checkpoint, FolderCheckpoint
from novamesh_engine.quant.codebook import BLOCK, NF4Matrix
from novamesh_engine.quant.profile import ModelProfile, hash_file, write_profile
from novamesh_engine.quant.shards import (
    SHARD_BYTES,
    Shard,
    ShardWriter,
    index_bytes,
    lay_out,
    sync_folder,
)
from novamesh_engine.quant.tensors import Part, ProfileTensor, profile_tensors
from novamesh_engine.weights.load import FLOATS, refuse_strangers, settle_head_dim
from novamesh_engine.weights.names import ABSMAX, HEAD
from novamesh_engine.weights.store import INDEX_FILE, TensorStore
from novamesh_proto.errors import Code, NovaMeshError

# What a profile carries beside its weights, where the source has it.
COMPANIONS: Final = (
    "chat_template.jinja", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
)  # fmt: skip
STATE_FILE: Final = "conversion.json"
STATE_BYTES_MAX: Final = 4 << 20
CHUNK_WEIGHTS: Final = 1 << 22  # unpacked at a time: 16 MiB of float32
_FORMAT: Final = 1  # of the state file, and of what a conversion does


@dataclass(frozen=True, slots=True)
class Step:
    """How far a conversion is: bytes of the profile's weights, and the shard at hand, from 1."""

    shard: int
    shards: int
    written: int
    total: int


Report = Callable[[Step], None]


def quiet(_: Step) -> None:
    """Report to nobody."""


def convert(source: Path, target: Path, name: str, shard_bytes: int = SHARD_BYTES) -> ModelProfile:
    """Quantize a model folder into a new profile folder and return the profile.

    Raises: NovaMeshError (conflict) if `target` holds anything, (unsupported) if a width is no
    multiple of 64, and as reading the source does.
    """
    if target.exists() and any(target.iterdir()):
        raise NovaMeshError(Code.CONFLICT, f"{target}: is not empty", "name a new folder")
    return Conversion(FolderCheckpoint.at(source), shard_bytes).run(target, name)


def quantize(weight: Tensor) -> NF4Matrix:
    """Pack a matrix [..., N, K] with bitsandbytes; scales are rounded to float16 afterwards."""
    *rows, width = weight.shape
    flat = weight.float().contiguous()
    packed, state = bnb.quantize_4bit(flat, blocksize=BLOCK, quant_type="nf4")
    absmax = state.absmax.to(torch.float16).view(*rows, width // BLOCK)
    return NF4Matrix(packed.view(*rows, width // 2), absmax)


class Conversion:
    """One checkpoint on its way to a profile: what it takes is known before it begins."""

    def __init__(self, checkpoint: Checkpoint, shard_bytes: int = SHARD_BYTES) -> None:
        """Raises: NovaMeshError (unsupported, corrupt) if this checkpoint cannot be converted."""
        self._checkpoint = checkpoint
        config = ModelConfig.from_file(checkpoint.folder / CONFIG_FILE)
        self._config = settle_head_dim(config, checkpoint.shape)
        self._where = checkpoint.where
        plan = profile_tensors(self._config, self._where)
        self._check(plan)
        self._embedding = plan[0].parts[0]
        self._twin = self._config.tie_embeddings and HEAD in self._where
        self.shards = lay_out(plan, shard_bytes)
        self.size = sum(shard.size for shard in self.shards)
        self._last_use = self._last_uses()

    def disk_bytes(self, sizes: Mapping[str, int]) -> int:
        """Most bytes on disk at once, if files of `sizes` come when needed and go when released.

        Files that are not in `sizes` cost nothing: they are here anyway.
        """
        here: set[str] = set()
        most = written = 0
        for number, shard in enumerate(self.shards):
            here |= self._files(number)
            written += shard.size
            most = max(most, written + sum(sizes.get(name, 0) for name in here))
            here -= {name for name, last in self._last_use.items() if last == number}
        return most

    def run(self, target: Path, name: str, report: Report = quiet) -> ModelProfile:
        """Make the profile in a folder that holds nothing, or what an earlier run has left there.

        Raises: NovaMeshError (corrupt, unsupported, storage), and what the checkpoint raises.
        """
        try:
            target.mkdir(parents=True, exist_ok=True)
            digests = self._make_shards(target, report)
            files = list(digests)
            if len(self.shards) > 1:
                (target / INDEX_FILE).write_bytes(index_bytes(self.shards))
                files.append(INDEX_FILE)
            (target / CONFIG_FILE).write_bytes(self._config_bytes())
            files.append(CONFIG_FILE)
            for companion in COMPANIONS:
                if (self._checkpoint.folder / companion).is_file():
                    shutil.copyfile(self._checkpoint.folder / companion, target / companion)
                    files.append(companion)
            profile = write_profile(target, name, "nf4", files, digests)
            (target / STATE_FILE).unlink(missing_ok=True)
            sync_folder(target)
        except OSError as error:
            hint = "free some space, then do it again: it goes on where it stopped"
            what = f"cannot write {target}: {error.strerror or error}"
            raise NovaMeshError(Code.STORAGE, what, hint) from error
        return profile

    def _config_bytes(self) -> bytes:
        """The checkpoint's config.json; a head_dim that only its weights told is added."""
        path = self._checkpoint.folder / CONFIG_FILE
        data = read_bytes(path, CONFIG_BYTES_MAX)
        if self._config.head_dim_stated:
            return data
        raw = parse_object(data, path) | {"head_dim": self._config.head_dim}
        return (json.dumps(raw, indent=2) + "\n").encode()

    def _check(self, plan: Sequence[ProfileTensor]) -> None:
        """Everything that can be told without a weight."""
        known = [part.name for tensor in plan for part in tensor.parts]
        folder = self._checkpoint.folder
        refuse_strangers(self._config, self._where, known, lambda name: folder / self._where[name])
        for tensor in plan:
            if tensor.form == "nf4" and tensor.shape[-1] % BLOCK:
                width = tensor.shape[-1]
                what = f"{folder}: {tensor.name} is {width} wide"
                raise NovaMeshError(
                    Code.UNSUPPORTED, f"{what}, not a multiple of {BLOCK}",
                    "run this model unquantized",
                )  # fmt: skip
            for part in tensor.parts:
                if part.name not in self._where:
                    raise corrupt(folder, f"tensor {part.name} is missing")

    def _files(self, number: int) -> set[str]:
        tensors = self.shards[number].tensors
        found = {self._where[part.name] for tensor in tensors for part in tensor.parts}
        return found | ({self._where[HEAD]} if self._twin and number == 0 else set())

    def _last_uses(self) -> dict[str, int]:
        """The last shard that each file is needed for."""
        last: dict[str, int] = {}
        for number in range(len(self.shards)):
            last |= dict.fromkeys(self._files(number), number)
        return last

    def _make_shards(self, target: Path, report: Report) -> dict[str, str]:
        """Names and digests of all shards, each made unless an earlier run has."""
        state = _State.read(target / STATE_FILE, self._identity())
        written = 0
        for number, shard in enumerate(self.shards):
            report(Step(number + 1, len(self.shards), written, self.size))
            if not state.has(target / shard.name):
                before = written

                def report_bytes(done: int, number: int = number, before: int = before) -> None:
                    report(Step(number + 1, len(self.shards), before + done, self.size))

                state.add(shard.name, self._make(target, shard, report_bytes))
            written += shard.size
            for name, last in self._last_use.items():
                if last == number:
                    self._checkpoint.release(name)
        report(Step(len(self.shards), len(self.shards), written, self.size))
        return {shard.name: state.digests[shard.name] for shard in self.shards}

    def _identity(self) -> str:
        """What must be the same for a shard of an earlier run to be one of this run."""
        hashed = hashlib.sha256(f"{_FORMAT}\n{self._checkpoint.identity}\n".encode())
        for shard in self.shards:
            hashed.update(shard.header)
        return hashed.hexdigest()

    def _make(self, target: Path, shard: Shard, report: Callable[[int], None]) -> str:
        writer = ShardWriter(target, shard)
        try:
            done = 0
            for tensor in shard.tensors:
                if self._twin and tensor.parts == (self._embedding,):
                    self._check_twin()
                at = 0
                for part in tensor.parts:
                    for weights in self._read(part):
                        _write(writer, tensor, at, weights)
                        at += weights.numel()
                done += sum(stored.size for stored in tensor.stored)
                report(done)
            return writer.finish()
        finally:
            writer.close()

    def _check_twin(self) -> None:
        """A tied checkpoint may hold its head too, if it is the embedding."""
        pairs = zip(
            self._read(self._embedding), self._read(Part(HEAD, self._embedding.shape)), strict=True
        )
        if not all(torch.equal(*pair) for pair in pairs):
            what = f"{HEAD} is not the embedding that the config ties it to"
            raise NovaMeshError(
                Code.UNSUPPORTED, f"{self._checkpoint.folder}: {what}",
                "set tie_word_embeddings to false",
            )  # fmt: skip

    def _read(self, part: Part) -> Iterator[Tensor]:
        """The weights of a part, float32, whole rows at a time: [rows, width], or [n]."""
        file = self._checkpoint.open(self._where[part.name])
        store = TensorStore(self._checkpoint.folder, {part.name: file})
        store.take(part.name, part.shape, *FLOATS)  # checks its shape and type, reads nothing
        entry = file.entries[part.name]
        width = part.shape[-1]
        rows = math.prod(part.shape[:-1])
        step = max(1, CHUNK_WEIGHTS // width) * width * entry.dtype.itemsize
        with open_file(file.path) as source:
            source.seek(entry.start)
            for start in range(entry.start, entry.stop, step):
                data = bytearray(min(step, entry.stop - start))
                if source.readinto(data) != len(data):
                    raise corrupt(file.path, f"ends within tensor {part.name}")
                weights = torch.frombuffer(data, dtype=entry.dtype).float()
                if not _is_finite(weights):
                    raise corrupt(file.path, f"tensor {part.name} holds values that are no numbers")
                yield weights.view(-1, width) if rows > 1 or len(part.shape) > 1 else weights


def _write(writer: ShardWriter, tensor: ProfileTensor, at: int, weights: Tensor) -> None:
    """Put weights, from the weight `at` of a tensor on, where they belong."""
    if tensor.form == "float32":
        writer.write(tensor.name, at * 4, _bytes(weights))
    elif tensor.form == "float16":
        writer.write(tensor.name, at * 2, _bytes(_narrow(tensor.name, weights)))
    else:
        matrix = quantize(weights)
        writer.write(tensor.name, at // 2, _bytes(matrix.packed))
        scales = _narrow(tensor.name, matrix.absmax)
        writer.write(tensor.name + ABSMAX, at // BLOCK * 2, _bytes(scales))


def _narrow(name: str, values: Tensor) -> Tensor:
    """Values as float16; one that it cannot hold would become infinite."""
    narrow = values.half()
    if not _is_finite(narrow):
        what = f"{name} holds values that are too large for float16"
        raise NovaMeshError(Code.UNSUPPORTED, what, "run this model unquantized")
    return narrow


def _is_finite(values: Tensor) -> bool:
    """Whether all values are numbers; one pass, where torch.isfinite takes five."""
    return all(math.isfinite(each) for each in torch.aminmax(values))


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.contiguous().view(torch.uint8).flatten().numpy().data


@dataclass(slots=True)
class _State:
    """The shards that are whole, on disk: a kill loses the shard at hand and no other."""

    path: Path
    identity: str
    digests: dict[str, str]

    @classmethod
    def read(cls, path: Path, identity: str) -> _State:
        """What an earlier run has written, if it converted the same thing; else nothing."""
        try:
            if path.stat().st_size > STATE_BYTES_MAX:
                return cls(path, identity, {})
            found = json.loads(path.read_bytes())
            shards = found["shards"] if found["identity"] == identity else {}
            digests = {str(name): str(digest) for name, digest in shards.items()}
        except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
            digests = {}  # none, or damaged: it costs work, never a wrong byte
        return cls(path, identity, digests)

    def has(self, shard: Path) -> bool:
        """Whether a shard of an earlier run is here and still what was written."""
        digest = self.digests.get(shard.name)
        try:
            return digest is not None and hash_file(shard) == digest
        except OSError:
            return False

    def add(self, name: str, digest: str) -> None:
        """One more shard is whole."""
        self.digests[name] = digest
        draft = self.path.with_name(f"{self.path.name}.tmp")
        with draft.open("w") as file:
            json.dump({"identity": self.identity, "shards": self.digests}, file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self.path)
        sync_folder(self.path.parent)
