"""A model folder to a decoder: plain Hugging Face checkpoints and our NF4 profiles.

Rules: every tensor is taken by name, shape and type; a profile's files are hashed before any is
used, unless the caller has just done so. Packed weights stay views of the file. Plain weights are
widened to float32, one tensor after another, so that a checkpoint is never in memory twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from novamesh_engine.kernels import Kernels, select
from novamesh_engine.kernels.reference import Matrix
from novamesh_engine.models.attention import Attention
from novamesh_engine.models.config import CONFIG_FILE, ModelConfig
from novamesh_engine.models.decoder import Decoder, Layer
from novamesh_engine.models.layers import Linear, RMSNorm, Rotary
from novamesh_engine.models.moe import MoE
from novamesh_engine.quant.codebook import BLOCK, NF4Matrix
from novamesh_engine.quant.profile import ModelProfile, is_profile, read_profile
from novamesh_engine.quant.profile import verify as verify_profile
from novamesh_engine.weights.names import (
    ABSMAX,
    EMBEDDING,
    HEAD,
    NORM,
    attention_name,
    expert_name,
    norm_names,
    router_name,
    stack_name,
)
from novamesh_engine.weights.store import TensorStore
from novamesh_proto.errors import Code, NovaMeshError

FLOATS: Final = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A decoder ready to run, and the profile it came from, if it came from one."""

    config: ModelConfig
    decoder: Decoder
    profile: ModelProfile | None


def load_model(path: str | Path, device: str = "cpu", verify: bool = True) -> LoadedModel:
    """Load a profile folder, or a plain Hugging Face folder, onto a device.

    Raises: NovaMeshError (model_not_found, not_found, corrupt, unsupported) naming the file, and
    the tensor or field where there is one.
    """
    folder = Path(path)
    profile = read_profile(folder) if is_profile(folder) else None
    if profile is not None and verify:
        verify_profile(profile)
    config = ModelConfig.from_file(folder / CONFIG_FILE)
    store = TensorStore.open(folder, None if profile is None else profile.file_names)
    packed = profile is not None and profile.quant == "nf4"
    source = PackedSource(config, store) if packed else PlainSource(config, store)
    return LoadedModel(config, _Assembly(config, source, select(device), device).decoder(), profile)


@dataclass(frozen=True, slots=True)
class PlainSource:
    """The tensors of a Hugging Face checkpoint, widened to float32, stacked as kernels want."""

    config: ModelConfig
    store: TensorStore

    def vector(self, name: str, *shape: int) -> Tensor:
        """A small or plain tensor, float32."""
        return self.store.take_finite(name, shape, *FLOATS).float()

    def embedding(self) -> Tensor:
        """The token embedding [vocab, H]."""
        return self.vector(EMBEDDING, self.config.vocab_size, self.config.hidden_size)

    def head(self) -> Tensor:
        """The output head [vocab, H] of a model that does not tie it."""
        return self.vector(HEAD, self.config.vocab_size, self.config.hidden_size)

    def qkv(self, layer: int) -> Tensor:
        """The rows of q, k and v, one below the other."""
        config = self.config
        heads = {"q": config.heads, "k": config.kv_heads, "v": config.kv_heads}
        return torch.cat([
            self.vector(attention_name(layer, key), count * config.head_dim, config.hidden_size)
            for key, count in heads.items()
        ])  # fmt: skip

    def output(self, layer: int) -> Tensor:
        """Attention's output projection [H, heads * D]."""
        config = self.config
        width = config.heads * config.head_dim
        return self.vector(attention_name(layer, "o"), config.hidden_size, width)

    def gate_up(self, layer: int) -> Tensor:
        """All experts' gate rows, then up rows: [E, 2F, H]."""
        keys = (self.config.traits.gate, self.config.traits.up)
        return self._stack(layer, keys, self.config.expert_size, self.config.hidden_size)

    def down(self, layer: int) -> Tensor:
        """All experts' down rows: [E, H, F]."""
        keys = (self.config.traits.down,)
        return self._stack(layer, keys, self.config.hidden_size, self.config.expert_size)

    def _stack(self, layer: int, keys: tuple[str, ...], rows: int, width: int) -> Tensor:
        """All are looked up, as views, before memory is taken for what a config only claims."""
        experts = range(self.config.experts)
        names = [expert_name(self.config, layer, expert, key) for expert in experts for key in keys]
        found = [self.store.take_finite(name, (rows, width), *FLOATS) for name in names]
        stack = torch.empty((len(found), rows, width))
        for target, tensor in zip(stack, found, strict=True):
            target.copy_(tensor)
        return stack.view(self.config.experts, len(keys) * rows, width)


@dataclass(frozen=True, slots=True)
class PackedSource:
    """The tensors of an NF4 profile: packed matrices are views of the file."""

    config: ModelConfig
    store: TensorStore

    def vector(self, name: str, *shape: int) -> Tensor:
        """A router or norm, float32."""
        return self.store.take_finite(name, shape, *FLOATS).float()

    def embedding(self) -> Tensor:
        """The token embedding [vocab, H], float16."""
        shape = (self.config.vocab_size, self.config.hidden_size)
        return self.store.take_finite(EMBEDDING, shape, torch.float16)

    def head(self) -> NF4Matrix:
        """The output head of a model that does not tie it."""
        return self._packed(HEAD, self.config.vocab_size, self.config.hidden_size)

    def qkv(self, layer: int) -> NF4Matrix:
        """The rows of q, k and v, one below the other."""
        config = self.config
        rows = (config.heads + 2 * config.kv_heads) * config.head_dim
        return self._packed(attention_name(layer, "qkv"), rows, config.hidden_size)

    def output(self, layer: int) -> NF4Matrix:
        """Attention's output projection."""
        config = self.config
        width = config.heads * config.head_dim
        return self._packed(attention_name(layer, "o"), config.hidden_size, width)

    def gate_up(self, layer: int) -> NF4Matrix:
        """All experts' gate rows, then up rows."""
        config = self.config
        name = stack_name(config, layer, "gate_up")
        return self._packed(name, config.experts, 2 * config.expert_size, config.hidden_size)

    def down(self, layer: int) -> NF4Matrix:
        """All experts' down rows."""
        config = self.config
        name = stack_name(config, layer, "down")
        return self._packed(name, config.experts, config.hidden_size, config.expert_size)

    def _packed(self, name: str, *shape: int) -> NF4Matrix:
        *rows, width = shape
        if width % BLOCK:
            what = f"{self.store.path}: {name} is {width} wide, not a multiple of {BLOCK}"
            raise NovaMeshError(Code.UNSUPPORTED, what, "NF4 needs widths that are")
        packed = self.store.take(name, (*rows, width // 2), torch.uint8)
        scales = (*rows, width // BLOCK)
        absmax = self.store.take_finite(name + ABSMAX, scales, torch.float16)
        return NF4Matrix(packed, absmax)


@dataclass(frozen=True, slots=True)
class _Assembly:
    config: ModelConfig
    source: PlainSource | PackedSource
    kernels: Kernels
    device: str

    def decoder(self) -> Decoder:
        config = self.config
        embedding = self.source.embedding().to(self.device)
        head = embedding if config.tie_embeddings else self.source.head()
        return Decoder(
            config=config,
            embedding=embedding,
            rotary=Rotary.create(config.head_dim, config.rope_theta, self.device),
            layers=tuple(self._layer(index) for index in range(config.layers)),
            norm=self._norm(NORM),
            head=self._linear(head),
        )

    def _layer(self, index: int) -> Layer:
        config, source = self.config, self.source
        before_attention, before_moe = norm_names(index)
        attention = Attention(
            index, config, self._linear(source.qkv(index)), self._linear(source.output(index))
        )
        router = source.vector(router_name(config, index), config.experts, config.hidden_size)
        moe = MoE(
            router.to(self.device), source.gate_up(index).to(self.device),
            source.down(index).to(self.device), config.experts_per_token, self.kernels,
        )  # fmt: skip
        return Layer(self._norm(before_attention), attention, self._norm(before_moe), moe)

    def _norm(self, name: str) -> RMSNorm:
        weight = self.source.vector(name, self.config.hidden_size).to(self.device)
        return RMSNorm(weight, self.config.norm_eps, self.kernels)

    def _linear(self, weight: Matrix) -> Linear:
        return Linear(weight.to(self.device), self.kernels)
