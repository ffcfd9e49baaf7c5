"""A model folder to a decoder: plain Hugging Face checkpoints and our NF4 profiles.

Rules: every tensor is taken by name, shape and type, and none may be left over, because a tensor
that we do not know belongs to a feature that we do not run; a profile's files are hashed before
any is used, unless the caller has just done so. Packed weights stay views of the file. Plain
weights are widened to float32, one tensor after another, so that a checkpoint is never in memory
twice.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol

import torch
from torch import Tensor

from novamesh_engine.kernels.reference import Matrix
from novamesh_engine.models.attention import Attention
from novamesh_engine.models.config import CONFIG_FILE, ModelConfig
from novamesh_engine.models.decoder import Decoder, Layer
from novamesh_engine.models.layers import Linear, Norm
from novamesh_engine.models.moe import MLP, MoE, Router, SharedExpert
from novamesh_engine.models.rotary import Rotary
from novamesh_engine.models.traits import Naming
from novamesh_engine.quant.codebook import BLOCK, NF4Matrix
from novamesh_engine.quant.profile import ModelProfile, is_profile, read_profile
from novamesh_engine.quant.profile import verify as verify_profile
from novamesh_engine.weights.names import (
    ABSMAX,
    HEAD,
    PACKED_QKV,
    QUERY,
    Piece,
    find_naming,
    layer_pieces,
    outer_pieces,
    pieces,
)
from novamesh_engine.weights.store import TensorStore
from novamesh_proto.errors import Code, NovaMeshError

FLOATS: Final = (torch.float32, torch.bfloat16, torch.float16)

_HEAD_DIM_MAX: Final = 1024
# Buffers that old versions of transformers saved and that follow from the config.
_DERIVED: Final = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A decoder ready to run, and the profile it came from, if it came from one."""

    config: ModelConfig
    decoder: Decoder
    profile: ModelProfile | None


def load_model(path: str | Path, device: str = "cpu", verify: bool = True) -> LoadedModel:
    """Load a profile folder, or a plain Hugging Face folder, whole onto a device.

    Raises: NovaMeshError (model_not_found, not_found, corrupt, unsupported) naming the file, and
    the tensor or field where there is one.
    """
    source, profile = open_source(path, verify)
    return LoadedModel(source.config, assemble(source, device), profile)


def open_source(
    path: str | Path, verify: bool = True
) -> tuple[PackedSource | PlainSource, ModelProfile | None]:
    """The pieces of a folder, none of them read yet, and its profile if it is one.

    Raises: NovaMeshError as `load_model`.
    """
    folder = Path(path)
    profile = read_profile(folder) if is_profile(folder) else None
    if profile is not None and verify:
        verify_profile(profile)
    config = ModelConfig.from_file(folder / CONFIG_FILE)
    store = TensorStore.open(folder, None if profile is None else profile.file_names)
    packed = profile is not None and profile.quant == "nf4"
    return PackedSource.of(config, store) if packed else PlainSource.of(config, store), profile


class Source(Protocol):
    """Where the pieces of a decoder come from."""

    @property
    def config(self) -> ModelConfig:
        """The model, its head_dim settled."""
        ...

    @property
    def naming(self) -> Naming:
        """How its pieces are called."""
        ...

    def take(self, piece: Piece) -> Matrix:
        """A piece as the decoder holds it."""
        ...


def assemble(
    source: Source,
    device: str = "cpu",
    experts_apart: bool = False,
    embedding_apart: bool = False,
) -> Decoder:
    """The decoder of a source, piece after piece, on a device.

    What is apart stays in the host's memory: routed experts, and an embedding that is not the head.
    """
    return _Assembly(source, device, experts_apart, embedding_apart).decoder()


def settle_head_dim(
    config: ModelConfig, shape_of: Callable[[str], tuple[int, ...] | None]
) -> ModelConfig:
    """The config with the head_dim of its weights, where config.json does not state one.

    `shape_of` gives the shape of a tensor of the checkpoint, None if it has none of that name.
    hidden_size / heads is only a habit: Phi-tiny-MoE has 16 heads of 128 in a width of 4096.
    """
    if config.head_dim_stated:
        return config
    for name, heads in ((QUERY, config.heads), (PACKED_QKV, config.heads + 2 * config.kv_heads)):
        shape = shape_of(name)
        if shape is not None and len(shape) == 2 and shape[0] % (2 * heads) == 0:
            return replace(config, head_dim=min(_HEAD_DIM_MAX, max(2, shape[0] // heads)))
    return config


@dataclass(frozen=True, slots=True)
class PlainSource:
    """The pieces of a Hugging Face checkpoint, widened to float32, put together."""

    config: ModelConfig
    store: TensorStore
    naming: Naming

    @classmethod
    def of(cls, config: ModelConfig, store: TensorStore) -> PlainSource:
        """The source of a folder, whose names are those of the family and no others.

        Raises: NovaMeshError (unsupported) naming a tensor that does not belong to the model.
        """
        config = settle_head_dim(config, store.shape)
        naming = find_naming(config, store.files)
        known = (part.name for piece in pieces(config, naming) for part in piece.parts)
        refuse_strangers(config, store.files, known, lambda name: store.files[name].path)
        _check_tie(config, store)
        return cls(config, store, naming)

    def take(self, piece: Piece) -> Tensor:
        """A piece in float32; all its parts are looked up before memory is taken for it.

        Raises: NovaMeshError (corrupt) naming file and tensor.
        """
        found = [self.store.take_finite(part.name, part.shape, *FLOATS) for part in piece.parts]
        if len(found) == 1:
            return found[0].float()
        whole = torch.empty(piece.shape)
        flat, start = whole.view(-1), 0
        for part in found:
            flat[start : start + part.numel()].copy_(part.flatten())
            start += part.numel()
        return whole


@dataclass(frozen=True, slots=True)
class PackedSource:
    """The pieces of an NF4 profile: packed matrices are views of the file."""

    config: ModelConfig
    store: TensorStore
    naming: Naming

    @classmethod
    def of(cls, config: ModelConfig, store: TensorStore) -> PackedSource:
        """The source of a profile.

        Raises: NovaMeshError (unsupported) naming a tensor that does not belong to the model.
        """
        config = settle_head_dim(config, store.shape)
        naming = config.traits.namings[0]
        known = [piece.name for piece in pieces(config, naming)]
        known += [name + ABSMAX for name in known]
        refuse_strangers(config, store.files, known, lambda name: store.files[name].path)
        return cls(config, store, naming)

    def take(self, piece: Piece) -> Matrix:
        """A piece in the form that a profile keeps it in.

        Raises: NovaMeshError (corrupt, unsupported) naming file and tensor.
        """
        if piece.form == "nf4":
            return self._packed(piece)
        if piece.form == "float16":
            return self.store.take_finite(piece.name, piece.shape, torch.float16)
        return self.store.take_finite(piece.name, piece.shape, *FLOATS).float()

    def _packed(self, piece: Piece) -> NF4Matrix:
        *rows, width = piece.shape
        if width % BLOCK:
            what = f"{self.store.path}: {piece.name} is {width} wide, not a multiple of {BLOCK}"
            raise NovaMeshError(Code.UNSUPPORTED, what, "NF4 needs widths that are")
        packed = self.store.take(piece.name, (*rows, width // 2), torch.uint8)
        scales = (*rows, width // BLOCK)
        absmax = self.store.take_finite(piece.name + ABSMAX, scales, torch.float16)
        return NF4Matrix(packed, absmax)


def refuse_strangers(
    config: ModelConfig,
    names: Iterable[str],
    known: Iterable[str],
    place: Callable[[str], Path],
) -> None:
    """Refuse a checkpoint with tensors that a model of this shape does not know.

    `place` gives the file of a tensor, for the message.

    Raises: NovaMeshError (unsupported) naming file and tensor.
    """
    expected = {*known, HEAD}
    for name in names:
        if name not in expected and not _DERIVED.fullmatch(name):
            what = f"{place(name)}: tensor {name} is not part of {config.model_type}"
            hint = "the model has a feature that novamesh does not run"
            raise NovaMeshError(Code.UNSUPPORTED, what, hint)


def _check_tie(config: ModelConfig, store: TensorStore) -> None:
    """A tied checkpoint may hold its head too, if it is the embedding."""
    if not config.tie_embeddings or HEAD not in store.files:
        return
    embedding = outer_pieces(config)["embedding"]
    both = [store.take(name, embedding.shape, *FLOATS) for name in (embedding.name, HEAD)]
    if not torch.equal(*both):
        what = f"{store.files[HEAD].path}: {HEAD} is not the embedding that the config ties it to"
        raise NovaMeshError(Code.UNSUPPORTED, what, "set tie_word_embeddings to false")


@dataclass(frozen=True, slots=True)
class _Assembly:
    source: Source
    device: str
    experts_apart: bool
    embedding_apart: bool

    def decoder(self) -> Decoder:
        config, roles = self.source.config, outer_pieces(self.source.config)
        embedding = self._take(
            roles["embedding"], self.embedding_apart and not config.tie_embeddings
        )
        assert isinstance(embedding, Tensor), "an embedding is never packed"
        head = Linear(embedding, self._vector(roles, "head_bias"))
        return Decoder(
            config=config,
            embedding=embedding,
            rotary=Rotary.create(config.rope, config.head_dim, self.device),
            layers=tuple(self._layer(index) for index in range(config.layers)),
            norm=self._norm(roles, "norm"),
            head=head if config.tie_embeddings else self._linear(roles, "head"),
        )

    def _layer(self, index: int) -> Layer:
        config = self.source.config
        roles = layer_pieces(config, self.source.naming, index)
        attention = Attention(
            index, config.heads, config.kv_heads, config.head_dim,
            qkv=self._linear(roles, "qkv"), output=self._linear(roles, "output"),
            query_norm=self._norm(roles, "query_norm") if "query_norm" in roles else None,
            key_norm=self._norm(roles, "key_norm") if "key_norm" in roles else None,
            clip=config.clip, window=config.windows[index],
        )  # fmt: skip
        return Layer(
            self._norm(roles, "attention_norm"), attention, self._norm(roles, "mlp_norm"),
            self._mlp(roles),
        )  # fmt: skip

    def _mlp(self, roles: dict[str, Piece]) -> MoE | MLP:
        config = self.source.config
        router = self._vector(roles, "router")
        apart = self.experts_apart and router is not None
        gate_up, down = self._take(roles["gate_up"], apart), self._take(roles["down"], apart)
        if router is None:
            return MLP(gate_up, down)
        chooser = Router(
            router, "sparsemixer" if config.traits.sparsemixer else "softmax",
            config.experts_per_token, config.renormalise, config.jitter,
        )  # fmt: skip
        return MoE(chooser, gate_up, down, self._shared(roles))

    def _shared(self, roles: dict[str, Piece]) -> SharedExpert | None:
        gate = self._vector(roles, "shared_gate")
        if gate is None:
            return None
        return SharedExpert(
            self._take(roles["shared_gate_up"]), self._take(roles["shared_down"]), gate
        )

    def _linear(self, roles: dict[str, Piece], role: str) -> Linear:
        return Linear(self._take(roles[role]), self._vector(roles, f"{role}_bias"))

    def _norm(self, roles: dict[str, Piece], role: str) -> Norm:
        config, weight = self.source.config, self._vector(roles, role)
        assert weight is not None, f"{role} is in every layer that asks for it"
        bias = self._vector(roles, f"{role}_bias")
        return Norm(weight, bias, config.norm_eps, config.traits.centred)

    def _vector(self, roles: dict[str, Piece], role: str) -> Tensor | None:
        """A piece that is never packed, or None if the family has no such role."""
        if role not in roles:
            return None
        found = self._take(roles[role])
        assert isinstance(found, Tensor), f"{role} is never packed"
        return found

    def _take(self, piece: Piece, apart: bool = False) -> Matrix:
        return self.source.take(piece).to("cpu" if apart else self.device)
