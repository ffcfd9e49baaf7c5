"""A model's shape, read from Hugging Face's config.json and checked; one row of traits a family.

Rules: an unknown family, an unsupported feature or a number out of range is refused with the file
and the field in the message; nothing is guessed silently. This module does not import torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from novamesh_engine.files import AGAIN, parse_object, read_bytes
from novamesh_proto.errors import Code, NovaMeshError

CONFIG_FILE: Final = "config.json"
CONFIG_BYTES_MAX: Final = 1 << 20
ROUTER: Final = "softmax_topk_renorm"

_FOLDER: Final = "name a folder that holds config.json and *.safetensors"


@dataclass(frozen=True, slots=True)
class Traits:
    """How one family names its tensors and fields, and the defaults its configs may leave out."""

    moe: str  # the module below model.layers.{i} that holds router and experts
    gate: str
    up: str
    down: str
    expert_size: tuple[str, ...]  # config fields, the first present one counts
    rope_theta: float
    tie_embeddings: bool
    norm_eps: float


TRAITS: Final[dict[str, Traits]] = {
    "mixtral": Traits(
        "block_sparse_moe", "w1", "w3", "w2", ("intermediate_size",), 1e6, False, 1e-5,
    ),
    "nova": Traits(
        "mlp", "gate_proj", "up_proj", "down_proj",
        ("moe_intermediate_size", "intermediate_size"), 1e4, True, 1e-5,
    ),
}  # fmt: skip


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
    experts: int
    experts_per_token: int
    expert_size: int
    norm_eps: float
    rope_theta: float
    tie_embeddings: bool
    max_context: int
    router: str
    bos_id: int | None
    eos_ids: tuple[int, ...]

    @property
    def traits(self) -> Traits:
        """How this family names its tensors."""
        return TRAITS[self.model_type]

    @property
    def parameters(self) -> int:
        """Weights in all, embeddings counted once when tied."""
        return self._count(self.experts)

    @property
    def active_parameters(self) -> int:
        """Weights that one token touches."""
        return self._count(self.experts_per_token)

    def _count(self, experts: int) -> int:
        attention = self.hidden_size * self.head_dim * (self.heads + self.kv_heads) * 2
        moe = self.hidden_size * (experts * self.expert_size * 3 + self.experts)
        layer = attention + moe + 2 * self.hidden_size
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_embeddings else 2)
        return self.layers * layer + embeddings + self.hidden_size

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], source: str = CONFIG_FILE) -> ModelConfig:
        """Read the fields of a config.json; `source` names the file in errors.

        Raises: NovaMeshError (unsupported) for a family or feature that we do not run, (corrupt)
        for a missing field, a wrong type or a number out of range.
        """
        return _Fields(raw, source).config()

    @classmethod
    def from_file(cls, path: Path) -> ModelConfig:
        """Read a config.json file.

        Raises: NovaMeshError as `from_dict`, and (model_not_found) if there is no such file.
        """
        data = read_bytes(path, CONFIG_BYTES_MAX, _FOLDER)
        return cls.from_dict(parse_object(data, path), str(path))


@dataclass(frozen=True, slots=True)
class _Fields:
    """One raw config under inspection."""

    raw: Mapping[str, Any]
    source: str

    def config(self) -> ModelConfig:
        model_type = self.raw.get("model_type")
        traits = TRAITS.get(model_type) if isinstance(model_type, str) else None
        if traits is None or not isinstance(model_type, str):
            raise self.unsupported("model_type", model_type, f"one of {', '.join(sorted(TRAITS))}")
        self._refuse_features()
        heads = self.whole(("num_attention_heads",), 1, 1024)
        hidden = self.whole(("hidden_size",), 2, 1 << 16)
        experts = self.whole(("num_local_experts", "num_experts"), 1, 4096)
        vocab = self.whole(("vocab_size",), 2, 1 << 24)
        kv_heads = self.whole(("num_key_value_heads",), 1, heads, default=heads)
        if heads % kv_heads:
            raise self.corrupt("num_key_value_heads", kv_heads, f"a divisor of {heads} heads")
        return ModelConfig(
            model_type=model_type, vocab_size=vocab, hidden_size=hidden, heads=heads,
            layers=self.whole(("num_hidden_layers",), 1, 1024),
            kv_heads=kv_heads, head_dim=self._head_dim(hidden, heads), experts=experts,
            experts_per_token=self.whole(("num_experts_per_tok",), 1, experts),
            expert_size=self.whole(traits.expert_size, 1, 1 << 18),
            norm_eps=self.number("rms_norm_eps", 0.0, 1.0, traits.norm_eps),
            rope_theta=self._rope_theta(traits.rope_theta),
            tie_embeddings=self.flag("tie_word_embeddings", traits.tie_embeddings),
            max_context=self._max_context(), router=ROUTER,
            bos_id=next(iter(self.token_ids("bos_token_id", vocab)), None),
            eos_ids=self.token_ids("eos_token_id", vocab),
        )  # fmt: skip

    def _refuse_features(self) -> None:
        if self.raw.get("hidden_act", "silu") != "silu":
            raise self.unsupported("hidden_act", self.raw["hidden_act"], '"silu"')
        if self.flag("attention_bias", False):
            raise self.unsupported("attention_bias", True, "false")
        if not self.flag("norm_topk_prob", True):
            raise self.unsupported("norm_topk_prob", False, "true")

    def _head_dim(self, hidden: int, heads: int) -> int:
        head_dim = self.whole(("head_dim",), 2, 1024, default=max(2, hidden // heads))
        if head_dim % 2 or (self.raw.get("head_dim") is None and hidden % heads):
            raise self.corrupt("head_dim", head_dim, "even, or hidden_size divisible by heads")
        return head_dim

    def _max_context(self) -> int:
        """Inside the sliding window full attention is the same function, so the window bounds."""
        context = self.whole(("max_position_embeddings",), 1, 1 << 24, default=4096)
        return min(context, self.whole(("sliding_window",), 1, 1 << 24, default=context))

    def _rope_theta(self, default: float) -> float:
        for field in ("rope_parameters", "rope_scaling"):
            rope = self.raw.get(field)
            if rope is None:
                continue
            if not isinstance(rope, dict):
                raise self.corrupt(field, rope, "an object")
            kind = rope.get("rope_type", rope.get("type", "default"))
            if kind != "default":
                raise self.unsupported(f"{field}.rope_type", kind, '"default"')
            if rope.get("partial_rotary_factor", 1.0) != 1.0:
                raise self.unsupported(f"{field}.partial_rotary_factor", rope, "1.0")
            if "rope_theta" in rope:
                nested = _Fields(rope, f"{self.source}: {field}")
                return nested.number("rope_theta", 1.0, 1e12, default)
        return self.number("rope_theta", 1.0, 1e12, default)

    def whole(self, names: tuple[str, ...], low: int, high: int, default: int | None = None) -> int:
        name = next((name for name in names if self.raw.get(name) is not None), names[0])
        value = self.raw.get(name)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.corrupt(name, value, f"a whole number from {low} to {high}")
        return value

    def number(self, name: str, low: float, high: float, default: float) -> float:
        value = self.raw.get(name)
        value = default if value is None else value
        if not isinstance(value, int | float) or isinstance(value, bool) or not low < value <= high:
            raise self.corrupt(name, value, f"a number above {low:g}, at most {high:g}")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self.raw.get(name, default)
        if not isinstance(value, bool):
            raise self.corrupt(name, value, "true or false")
        return value

    def token_ids(self, name: str, vocab: int) -> tuple[int, ...]:
        value = self.raw.get(name)
        ids = () if value is None else tuple(value) if isinstance(value, list) else (value,)
        for token in ids:
            if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < vocab:
                raise self.corrupt(name, value, f"token ids below {vocab}")
        return ids

    def corrupt(self, name: str, value: object, wanted: str) -> NovaMeshError:
        shown = "is missing" if value is None else f"is {_show(value)}"
        return NovaMeshError(
            Code.CORRUPT, f"{self.source}: {name} {shown}, not {wanted}", AGAIN
        )  # fmt: skip

    def unsupported(self, name: str, value: object, wanted: str) -> NovaMeshError:
        hint = f"novamesh runs {', '.join(sorted(TRAITS))} models"
        return NovaMeshError(
            Code.UNSUPPORTED, f"{self.source}: {name} is {_show(value)}, not {wanted}", hint
        )  # fmt: skip


def _show(value: object) -> str:
    return json.dumps(value, default=str)[:80]
