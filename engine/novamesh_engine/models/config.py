"""A model's shape, read from Hugging Face's config.json and checked.

Rules: an unknown family, an unsupported feature or a number out of range is refused with the file
and the field in the message; nothing is guessed silently. What is particular to a family is a row
in `traits`. This module does not import torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from novamesh_engine.files import parse_object, read_bytes
from novamesh_engine.models.fields import Fields
from novamesh_engine.models.rope import Rope, read_rope
from novamesh_engine.models.traits import NEUTRAL, TRAITS, Flag, Traits, is_neutral, known

CONFIG_FILE: Final = "config.json"
CONFIG_BYTES_MAX: Final = 1 << 20

_FOLDER: Final = "name a folder that holds config.json and *.safetensors"
_FAMILIES: Final = f"novamesh runs {', '.join(sorted(TRAITS))} models"
_FULL, _SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The shape of a MoE decoder. Sizes are counts of elements, `max_context` is in tokens."""

    model_type: str
    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    head_dim_stated: bool  # if not, the weights' shape has the last word
    experts: int
    experts_per_token: int
    expert_size: int
    shared_size: int  # 0 without a shared expert
    dense_size: int  # of layers without experts; 0 if there are none
    dense_layers: frozenset[int]
    norm_eps: float
    qkv_bias: bool
    output_bias: bool
    head_bias: bool
    clip: float | None  # of queries, keys and values
    windows: tuple[int | None, ...]  # tokens that a token of each layer sees, itself included
    rope: Rope
    tie_embeddings: bool
    max_context: int
    renormalise: bool
    jitter: float
    bos_id: int | None
    eos_ids: tuple[int, ...]

    @property
    def traits(self) -> Traits:
        """What is particular to this family."""
        return TRAITS[self.model_type]

    @property
    def query_size(self) -> int:
        """Width of all heads together."""
        return self.heads * self.head_dim

    @property
    def key_size(self) -> int:
        """Width of all key heads together, and of all value heads."""
        return self.kv_heads * self.head_dim

    @property
    def parameters(self) -> int:
        """Weights in all, embeddings counted once when tied."""
        return self._count(self.experts)

    @property
    def active_parameters(self) -> int:
        """Weights that one token touches."""
        return self._count(self.experts_per_token)

    def _count(self, experts: int) -> int:
        hidden, traits = self.hidden_size, self.traits
        norm = hidden * (2 if traits.centred else 1)
        attention = hidden * (self.query_size + self.key_size) * 2
        attention += self.qkv_bias * (self.query_size + 2 * self.key_size)
        attention += self.output_bias * hidden
        attention += {"": 0, "head": 2 * self.head_dim, "full": self.query_size + self.key_size}[
            traits.query_key_norm
        ]
        moe = hidden * (experts * self.expert_size * 3 + self.experts)
        moe += hidden * (3 * self.shared_size + 1) if self.shared_size else 0
        dense = len(self.dense_layers)
        layers = self.layers * (attention + 2 * norm) + (self.layers - dense) * moe
        layers += dense * hidden * self.dense_size * 3
        embeddings = self.vocab_size * hidden * (1 if self.tie_embeddings else 2)
        return layers + embeddings + norm + self.head_bias * self.vocab_size

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], source: str = CONFIG_FILE) -> ModelConfig:
        """Read the fields of a config.json; `source` names the file in errors.

        Raises: NovaMeshError (unsupported) for a family or feature that we do not run, (corrupt)
        for a missing field, a wrong type or a number out of range.
        """
        fields, model_type = Fields(raw, source, _FAMILIES), raw.get("model_type")
        traits = TRAITS.get(model_type) if isinstance(model_type, str) else None
        if traits is None or not isinstance(model_type, str):
            known = f"one of {', '.join(sorted(TRAITS))}"
            raise fields.unsupported("model_type", model_type, known)
        return _Reader(fields, traits).config(model_type)

    @classmethod
    def from_file(cls, path: Path) -> ModelConfig:
        """Read a config.json file.

        Raises: NovaMeshError as `from_dict`, and (model_not_found) if there is no such file.
        """
        data = read_bytes(path, CONFIG_BYTES_MAX, _FOLDER)
        return cls.from_dict(parse_object(data, path), str(path))


@dataclass(frozen=True, slots=True)
class _Reader:
    """The fields of one config, read as those of a family."""

    fields: Fields
    traits: Traits

    def config(self, model_type: str) -> ModelConfig:
        fields, traits = self.fields, self.traits
        self._refuse_features()
        heads = fields.whole(("num_attention_heads",), 1, 1024)
        hidden = fields.whole(("hidden_size",), 2, 1 << 16)
        experts = fields.whole(("num_local_experts", "num_experts"), 1, 4096)
        vocab = fields.whole(("vocab_size",), 2, 1 << 24)
        layers = fields.whole(("num_hidden_layers",), 1, 1024)
        stated = fields.whole(("max_position_embeddings",), 1, 1 << 24, traits.max_context)
        rope = read_rope(fields, traits.rope_theta, stated, traits.rope_mscales)
        dense = self._dense_layers(layers)
        return ModelConfig(
            model_type=model_type, vocab_size=vocab, hidden_size=hidden, heads=heads,
            layers=layers, kv_heads=self._kv_heads(heads), head_dim=self._head_dim(hidden, heads),
            head_dim_stated=fields.has("head_dim"), experts=experts,
            experts_per_token=self._experts_per_token(experts),
            expert_size=fields.whole(traits.expert_size, 1, 1 << 18),
            shared_size=self._shared_size(), dense_layers=dense,
            dense_size=fields.whole(("intermediate_size",), 1, 1 << 18) if dense else 0,
            norm_eps=fields.number("rms_norm_eps", 0.0, 1.0, traits.norm_eps),
            qkv_bias=self._flag(traits.qkv_bias), output_bias=self._flag(traits.output_bias),
            head_bias=self._flag(traits.head_bias),
            clip=fields.number("clip_qkv", 0.0, 1e9) if fields.has("clip_qkv") else None,
            windows=self._windows(layers, rope.context(stated)), rope=rope,
            tie_embeddings=fields.flag("tie_word_embeddings", traits.tie_embeddings),
            max_context=rope.context(stated), renormalise=self._flag(traits.renormalise),
            jitter=fields.share("router_jitter_noise", 0.01) if traits.sparsemixer else 0.0,
            bos_id=next(iter(fields.token_ids("bos_token_id", vocab)), None),
            eos_ids=fields.token_ids("eos_token_id", vocab),
        )  # fmt: skip

    def _refuse_features(self) -> None:
        fields = self.fields
        if fields.raw.get("hidden_act", "silu") != "silu":
            raise fields.unsupported("hidden_act", fields.raw["hidden_act"], '"silu"')
        ours = known(self.traits)
        for name, value in fields.raw.items():
            if name not in ours and not is_neutral(name, value):
                wanted = json.dumps(NEUTRAL[name][0]) if name in NEUTRAL else "absent"
                raise fields.unsupported(name, value, wanted)

    def _flag(self, flag: Flag) -> bool:
        return flag.default if flag.field is None else self.fields.flag(flag.field, flag.default)

    def _kv_heads(self, heads: int) -> int:
        kv_heads = self.fields.whole(("num_key_value_heads",), 1, heads, default=heads)
        if heads % kv_heads:
            wanted = f"a divisor of {heads} heads"
            raise self.fields.corrupt("num_key_value_heads", kv_heads, wanted)
        return kv_heads

    def _head_dim(self, hidden: int, heads: int) -> int:
        fields = self.fields
        head_dim = fields.whole(("head_dim",), 2, 1024, default=max(2, hidden // heads))
        if head_dim % 2 or (not fields.has("head_dim") and hidden % heads):
            raise fields.corrupt("head_dim", head_dim, "even, or hidden_size divisible by heads")
        return head_dim

    def _experts_per_token(self, experts: int) -> int:
        count = self.fields.whole(("num_experts_per_tok",), 1, experts)
        if self.traits.sparsemixer and count != 2:
            raise self.fields.unsupported("num_experts_per_tok", count, "2")
        return count

    def _shared_size(self) -> int:
        if not self.traits.shared_expert:
            return 0
        return self.fields.whole(("shared_expert_intermediate_size",), 1, 1 << 18)

    def _dense_layers(self, layers: int) -> frozenset[int]:
        """Layers without experts, as Qwen's decoder layers choose them."""
        if not self.traits.sparse_step:
            return frozenset()
        step = self.fields.whole(("decoder_sparse_step",), 1, 1 << 16, default=1)
        named = self.fields.indices("mlp_only_layers", 1 << 16)
        return frozenset(i for i in range(layers) if i in named or (i + 1) % step)

    def _windows(self, layers: int, context: int) -> tuple[int | None, ...]:
        """The sliding window of each layer; one that spans the context is none."""
        kinds = self._layer_kinds(layers)
        if _SLIDING not in kinds:
            return (None,) * layers
        window = self.fields.whole(("sliding_window",), 1, 1 << 24)
        kept = window if window < context else None
        return tuple(kept if kind == _SLIDING else None for kind in kinds)

    def _layer_kinds(self, layers: int) -> list[str]:
        fields, rule = self.fields, self.traits.windows
        used = fields.flag("use_sliding_window", False) or (
            rule == "every" and fields.has("sliding_window")
        )
        if rule == "none" and fields.has("sliding_window"):
            raise fields.unsupported("sliding_window", fields.raw["sliding_window"], "null")
        kinds = [_SLIDING if used else _FULL] * layers
        if rule == "alternate":  # every other layer of the first `max_window_layers`
            last = fields.whole(("max_window_layers",), 0, 1 << 16, default=28)
            kinds = [_FULL if i % 2 or i >= last else kind for i, kind in enumerate(kinds)]
        stated = fields.raw.get("layer_types")
        if stated is None or stated == kinds:
            return kinds
        usable = used and rule == "alternate" and isinstance(stated, list)
        if not usable or len(stated) != layers or not {*map(str, stated)} <= {_FULL, _SLIDING}:
            raise fields.unsupported("layer_types", stated, json.dumps(kinds))
        return [str(kind) for kind in stated]
