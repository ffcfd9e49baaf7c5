"""An NF4 profile of Phi-mini's shape whose weights are random: 4.3 GB, the same for a seed.

What is packed is random bytes, as what is quantized looks; scales are such that a product keeps the
size of what it is given, so that activations stay what they are in a trained model. A router that
prefers nobody spreads the tokens evenly. The head's bias forbids the end of an answer.
"""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cpu import shape
from cpu.peers import MODELS
from novamesh_engine.models.config import ModelConfig
from novamesh_engine.quant.codebook import NF4_VALUES
from novamesh_engine.quant.profile import MANIFEST_FILE, write_profile
from novamesh_engine.quant.shards import Shard, index_bytes, lay_out
from novamesh_engine.quant.tensors import Stored, profile_tensors
from novamesh_engine.weights.names import ABSMAX
from novamesh_engine.weights.store import INDEX_FILE

NAME: Final = "phi-mini-random"
NEVER: Final = -1e4
_CODE_STD: Final = float(np.std(NF4_VALUES))
_POOL: Final = 1 << 24

TEMPLATE: Final = (
    "{{ bos_token }}{% for message in messages %}<{{ message.role }}>{{ message.content }}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def write_random_profile() -> Path:
    """The profile's folder, made if it is not there: under a minute."""
    folder = MODELS / NAME
    if (folder / MANIFEST_FILE).exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(shape.hf_config(), indent=1))
    _write_tokenizer(folder)
    config = ModelConfig.from_file(folder / "config.json")
    values = Values(np.random.default_rng(shape.SEED))
    shards = lay_out(profile_tensors(config, ()))
    for shard in shards:
        _write_shard(folder, shard, values)
    files = [shard.name for shard in shards]
    if len(shards) > 1:
        (folder / INDEX_FILE).write_bytes(index_bytes(shards))
        files.append(INDEX_FILE)
    companions = ("config.json", "tokenizer.json", "tokenizer_config.json")
    write_profile(folder, NAME, "nf4", [*files, *companions])
    return folder


def _write_shard(folder: Path, shard: Shard, values: Values) -> None:
    """Its tensors in the order of their places, a few megabytes at a time."""
    stored = {each.name: each for tensor in shard.tensors for each in tensor.stored}
    with (folder / shard.name).open("wb") as file:
        file.write(shard.header)
        for name in sorted(shard.offsets, key=lambda name: shard.offsets[name]):
            assert file.tell() == shard.offsets[name]
            left = math.prod(stored[name].shape)
            while left:
                some = min(left, _POOL)
                file.write(values.of(stored[name], some))
                left -= some


class Values:
    """Random values of a tensor, by its name."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def of(self, stored: Stored, count: int) -> bytes | memoryview:
        """The next `count` elements of a tensor."""
        if stored.dtype == "U8":
            return self.packed(count)
        if stored.name.endswith(ABSMAX):
            return self.scales(count).data
        if stored.dtype == "F16":
            return self.embedding(count).data
        return self.plain(stored.name, count).data

    def packed(self, count: int) -> bytes:
        """Two codes a byte, all alike."""
        return self._rng.bytes(count)

    def scales(self, count: int) -> NDArray[np.float16]:
        """Scales of blocks, within a factor of two of each other."""
        middle = shape.WEIGHT_STD / _CODE_STD
        drawn = self._rng.random(count, dtype=np.float32)
        return ((0.7 + 0.6 * drawn) * middle).astype(np.float16)

    def embedding(self, count: int) -> NDArray[np.float16]:
        """Token vectors."""
        return self._rng.standard_normal(count, dtype=np.float32).astype(np.float16)

    def plain(self, name: str, count: int) -> NDArray[np.float32]:
        """Norms of about one, small biases, a router."""
        drawn = self._rng.standard_normal(count, dtype=np.float32)
        if name == "lm_head.bias":
            drawn *= np.float32(0.1)
            drawn[shape.EOS] = NEVER
            return drawn
        if name.endswith(".bias"):
            return drawn * np.float32(0.02)
        if "norm" in name:
            return 1 + drawn * np.float32(0.1)
        return drawn * np.float32(shape.WEIGHT_STD)


def _write_tokenizer(folder: Path) -> None:
    """Byte-level: a token for each byte, then short words of small letters, none of them merged."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(byte) for byte in shown] + [chr(256 + n) for n in range(256 - len(shown))]
    vocabulary = ["<unk>", "<s>", *letters]
    words = (
        "".join(word)
        for length in (2, 3, 4)
        for word in itertools.product("etaoinshrdlucm", repeat=length)
    )
    vocabulary += itertools.islice(words, shape.VOCAB - len(vocabulary))
    vocabulary[shape.EOS] = "<|endoftext|>"
    special = [
        {"id": vocabulary.index(text), "content": text, "special": True, "single_word": False,
         "lstrip": False, "rstrip": False, "normalized": False}
        for text in ("<unk>", "<s>", "<|endoftext|>")
    ]  # fmt: skip
    definition: dict[str, Any] = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                          "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True,
                    "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None,
                  "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "fuse_unk": False, "byte_fallback": False, "merges": [],
                  "vocab": {text: number for number, text in enumerate(vocabulary)}},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(definition, ensure_ascii=False))
    settings = {"bos_token": "<s>", "eos_token": "<|endoftext|>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))
