"""A random model of our shape as llama.cpp wants it: a GGUF file, its blocks written directly.

IQ4_NL is llama.cpp's format closest to NF4: a codebook of sixteen values, a scale for 32 weights.
Rules: a fixed seed, the types that llama-quantize would choose, scales that keep activations sane.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cpu import shape
from cpu.peers import MODELS, require

GGUF: Final = "gguf==0.19.0"

_IQ4_NL: Final = (32, 18)  # weights and bytes of a block: an fp16 scale, then two codes a byte
_Q6_K: Final = (256, 210)  # codes, sixteen scales of 8 bits, and an fp16 scale last
_CODE_STD: Final = {"IQ4_NL": 70.0, "Q6_K": 18.5 * 37.0}  # of codes, and of codes times scales
_POOL_BYTES: Final = 32 << 20

Size = tuple[int, ...]


def write_gguf() -> Path:
    """The model's file, 4.05 GiB, made if it is not there."""
    path = MODELS / "phi-mini-iq4_nl.gguf"
    if path.exists():
        return path
    MODELS.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    gguf = require(GGUF, "gguf")
    writer = gguf.GGUFWriter(draft, "phimoe")
    _describe(writer, gguf)
    for name, size, kind in _tensors():
        stored = _stored(size, kind)
        dtype = np.dtype(np.float32 if kind == "F32" else np.uint8)
        bytes_ = int(np.prod(stored)) * dtype.itemsize
        kinds = gguf.GGMLQuantizationType
        writer.add_tensor_info(name, stored, dtype, bytes_, getattr(kinds, kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    rng = np.random.default_rng(shape.SEED)
    pools = {"IQ4_NL": _iq4_nl(rng), "Q6_K": _q6_k(rng)}
    for name, size, kind in _tensors():
        if kind == "F32":
            writer.write_tensor_data(_plain(name, size, rng))
        else:
            writer.write_tensor_data(np.resize(pools[kind], int(np.prod(_stored(size, kind)))))
    writer.close()
    draft.rename(path)
    return path


def _stored(size: Size, kind: str) -> Size:
    """The size in bytes along the width of what is made of blocks."""
    if kind == "F32":
        return size
    weights, bytes_ = _IQ4_NL if kind == "IQ4_NL" else _Q6_K
    return (*size[:-1], size[-1] // weights * bytes_)


def _describe(writer: Any, gguf: Any) -> None:
    writer.add_context_length(shape.CONTEXT)
    writer.add_embedding_length(shape.HIDDEN)
    writer.add_feed_forward_length(shape.EXPERT_SIZE)
    writer.add_block_count(shape.LAYERS)
    writer.add_head_count(shape.HEADS)
    writer.add_head_count_kv(shape.KV_HEADS)
    writer.add_layer_norm_rms_eps(shape.EPS)
    writer.add_rope_dimension_count(shape.HEAD_DIM)
    writer.add_rope_freq_base(shape.THETA)
    writer.add_rope_scaling_orig_ctx_len(shape.CONTEXT)
    writer.add_sliding_window(shape.WINDOW)
    writer.add_expert_count(shape.EXPERTS)
    writer.add_expert_used_count(shape.EXPERTS_PER_TOKEN)
    writer.add_vocab_size(shape.VOCAB)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"<t{number}>" for number in range(shape.VOCAB)])
    writer.add_token_scores([0.0] * shape.VOCAB)
    writer.add_token_types([gguf.TokenType.NORMAL] * shape.VOCAB)
    writer.add_bos_token_id(shape.BOS)
    writer.add_eos_token_id(shape.EOS)


def _tensors() -> Iterator[tuple[str, Size, str]]:
    """Name, size with the width last, and type."""
    hidden = shape.HIDDEN
    yield "token_embd.weight", (shape.VOCAB, hidden), "IQ4_NL"
    yield from _norm("output_norm")
    yield "output.weight", (shape.VOCAB, hidden), "Q6_K"
    yield "output.bias", (shape.VOCAB,), "F32"
    for layer in range(shape.LAYERS):
        for name, size, kind in _layer():
            yield f"blk.{layer}.{name}", size, kind


def _layer() -> Iterator[tuple[str, Size, str]]:
    hidden, size, experts = shape.HIDDEN, shape.EXPERT_SIZE, shape.EXPERTS
    queries, keys = shape.HEADS * shape.HEAD_DIM, shape.KV_HEADS * shape.HEAD_DIM
    matrices = {
        "attn_q": (queries, hidden),
        "attn_k": (keys, hidden),
        "attn_v": (keys, hidden),
        "attn_output": (hidden, queries),
    }
    yield from _norm("attn_norm")
    for name, (rows, width) in matrices.items():
        yield f"{name}.weight", (rows, width), "IQ4_NL"
        yield f"{name}.bias", (rows,), "F32"
    yield from _norm("ffn_norm")
    yield "ffn_gate_inp.weight", (experts, hidden), "F32"
    yield "ffn_gate_exps.weight", (experts, size, hidden), "IQ4_NL"
    yield "ffn_up_exps.weight", (experts, size, hidden), "IQ4_NL"
    yield "ffn_down_exps.weight", (experts, hidden, size), "IQ4_NL"


def _norm(name: str) -> Iterator[tuple[str, Size, str]]:
    for part in ("weight", "bias"):
        yield f"{name}.{part}", (shape.HIDDEN,), "F32"


def _plain(name: str, size: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float32]:
    """Norms of about one, small biases, a router that prefers nobody."""
    if name.endswith("norm.weight"):
        return np.ones(size, dtype=np.float32)
    spread = shape.WEIGHT_STD if name.endswith("weight") else 0.01
    return (rng.standard_normal(size, dtype=np.float32) * spread).astype(np.float32)


def _iq4_nl(rng: np.random.Generator) -> NDArray[np.uint8]:
    """Blocks of random codes under one scale."""
    pool = _random_blocks(rng, _IQ4_NL[1])
    pool[:, :2] = _half(shape.WEIGHT_STD / _CODE_STD["IQ4_NL"])
    return pool.reshape(-1)


def _q6_k(rng: np.random.Generator) -> NDArray[np.uint8]:
    pool = _random_blocks(rng, _Q6_K[1])
    pool[:, -2:] = _half(shape.WEIGHT_STD / _CODE_STD["Q6_K"])
    pool[:, -18:-2] &= 63  # scales of one sign and a modest size
    return pool.reshape(-1)


def _random_blocks(rng: np.random.Generator, size: int) -> NDArray[np.uint8]:
    count = _POOL_BYTES // size
    return np.frombuffer(rng.bytes(count * size), dtype=np.uint8).reshape(count, size).copy()


def _half(value: float) -> NDArray[np.uint8]:
    return np.array([value], dtype=np.float16).view(np.uint8)
