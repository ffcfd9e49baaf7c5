"""Which tensors make a decoder: what each is called, in a profile and in plain checkpoints.

A piece is one tensor as the decoder holds it. A profile keeps it under one name for all families;
a plain checkpoint holds it in parts (q, k and v; each expert's matrices), whose rows follow each
other. Rules: names and shapes only, no tensor is read here, so that a converter can ask what it
will need. This module does not import torch.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from novamesh_engine.models.config import ModelConfig
from novamesh_engine.models.traits import Naming

ABSMAX: Final = ".absmax"  # after a packed tensor's name: its scales
HEAD: Final = "lm_head.weight"
QUERY: Final = "model.layers.0.self_attn.q_proj.weight"  # its rows tell the true head_dim
PACKED_QKV: Final = "model.layers.0.self_attn.qkv_proj.weight"

Shape: TypeAlias = tuple[int, ...]
Form: TypeAlias = Literal["nf4", "float16", "float32"]


@dataclass(frozen=True, slots=True)
class Part:
    """A tensor of a plain checkpoint, of any of the float types."""

    name: str
    shape: Shape


@dataclass(frozen=True, slots=True)
class Piece:
    """One tensor of a decoder: its name and form in a profile, its unpacked shape, its parts."""

    name: str
    form: Form
    shape: Shape
    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        assert math.prod(self.shape) == sum(math.prod(part.shape) for part in self.parts)
        assert all(part.shape[-1] == self.shape[-1] for part in self.parts) or len(self.shape) == 1


def find_naming(config: ModelConfig, names: Container[str]) -> Naming:
    """How a checkpoint with these tensors names its experts; the usual way if none fits."""
    namings = config.traits.namings
    sparse = [index for index in range(config.layers) if index not in config.dense_layers]
    for naming in namings if sparse else ():
        if layer_pieces(config, naming, sparse[0])["gate_up"].parts[0].name in names:
            return naming
    return namings[0]


def pieces(config: ModelConfig, naming: Naming) -> Iterator[Piece]:
    """Every piece, in the order in which a profile holds them."""
    outer = outer_pieces(config)
    yield outer["embedding"]
    for index in range(config.layers):
        yield from layer_pieces(config, naming, index).values()
    yield from (piece for role, piece in outer.items() if role != "embedding")


def outer_pieces(config: ModelConfig) -> dict[str, Piece]:
    """What is not in a layer, by role: embedding, norm, head and their biases."""
    matrix = (config.vocab_size, config.hidden_size)
    found = {"embedding": _kept("model.embed_tokens.weight", matrix, "float16")}
    found |= _norm(config, "norm", "model.norm")
    if not config.tie_embeddings:
        found["head"] = _kept(HEAD, matrix, "nf4")
    if config.head_bias:
        found["head_bias"] = _kept("lm_head.bias", (config.vocab_size,))
    return found


def layer_pieces(config: ModelConfig, naming: Naming, index: int) -> dict[str, Piece]:
    """What is in a layer, by role; a role that the family has not is absent."""
    prefix = f"model.layers.{index}"
    dense = index in config.dense_layers
    return (
        _norm(config, "attention_norm", f"{prefix}.input_layernorm")
        | _attention(config, f"{prefix}.self_attn")
        | _norm(config, "mlp_norm", f"{prefix}.post_attention_layernorm")
        | (_dense(config, prefix) if dense else _experts(config, naming, prefix))
        | (_shared(config, prefix) if config.shared_size and not dense else {})
    )


def _kept(name: str, shape: Shape, form: Form = "float32") -> Piece:
    """A tensor that has the same name and shape in the checkpoint."""
    return Piece(name, form, shape, (Part(name, shape),))


def _norm(config: ModelConfig, role: str, name: str) -> dict[str, Piece]:
    shape = (config.hidden_size,)
    found = {role: _kept(f"{name}.weight", shape)}
    if config.traits.centred:
        found[f"{role}_bias"] = _kept(f"{name}.bias", shape)
    return found


def _attention(config: ModelConfig, prefix: str) -> dict[str, Piece]:
    hidden, query, key = config.hidden_size, config.query_size, config.key_size
    rows = {"q": query, "k": key, "v": key}
    total = query + 2 * key
    weights = tuple(Part(f"{prefix}.{part}_proj.weight", (n, hidden)) for part, n in rows.items())
    found = {"qkv": Piece(f"{prefix}.qkv_proj.weight", "nf4", (total, hidden), weights)}
    if config.qkv_bias:
        biases = tuple(Part(f"{prefix}.{part}_proj.bias", (n,)) for part, n in rows.items())
        found["qkv_bias"] = Piece(f"{prefix}.qkv_proj.bias", "float32", (total,), biases)
    if config.traits.query_key_norm:
        full = config.traits.query_key_norm == "full"
        for role, part, width in (("query_norm", "q", query), ("key_norm", "k", key)):
            shape = (width if full else config.head_dim,)
            found[role] = _kept(f"{prefix}.{part}_norm.weight", shape)
    found["output"] = _kept(f"{prefix}.o_proj.weight", (hidden, query), "nf4")
    if config.output_bias:
        found["output_bias"] = _kept(f"{prefix}.o_proj.bias", (hidden,))
    return found


def _experts(config: ModelConfig, naming: Naming, prefix: str) -> dict[str, Piece]:
    hidden, size, count = config.hidden_size, config.expert_size, config.experts
    module, stacks = f"{prefix}.{naming.module}", f"{prefix}.mlp.experts"
    wide, narrow = (count, 2 * size, hidden), (count, hidden, size)
    gate_ups = [Part(f"{module}.experts.gate_up_proj", wide)]
    downs = [Part(f"{module}.experts.down_proj", narrow)]
    if naming.keys is not None:
        *pair, down = naming.keys
        each = [f"{module}.experts.{expert}" for expert in range(count)]
        gate_ups = [Part(f"{name}.{key}.weight", (size, hidden)) for name in each for key in pair]
        downs = [Part(f"{name}.{down}.weight", (hidden, size)) for name in each]
    router = Part(f"{module}.{naming.router}.weight", (count, hidden))
    return {
        "router": Piece(f"{prefix}.mlp.gate.weight", "float32", router.shape, (router,)),
        "gate_up": Piece(f"{stacks}.gate_up_proj", "nf4", wide, tuple(gate_ups)),
        "down": Piece(f"{stacks}.down_proj", "nf4", narrow, tuple(downs)),
    }


def _dense(config: ModelConfig, prefix: str) -> dict[str, Piece]:
    return _swiglu(config.hidden_size, config.dense_size, f"{prefix}.mlp", "")


def _shared(config: ModelConfig, prefix: str) -> dict[str, Piece]:
    name = f"{prefix}.mlp.shared_expert"
    found = _swiglu(config.hidden_size, config.shared_size, name, "shared_")
    return found | {"shared_gate": _kept(f"{name}_gate.weight", (1, config.hidden_size))}


def _swiglu(hidden: int, size: int, name: str, role: str) -> dict[str, Piece]:
    parts = tuple(Part(f"{name}.{key}_proj.weight", (size, hidden)) for key in ("gate", "up"))
    return {
        f"{role}gate_up": Piece(f"{name}.gate_up_proj.weight", "nf4", (2 * size, hidden), parts),
        f"{role}down": _kept(f"{name}.down_proj.weight", (hidden, size), "nf4"),
    }
