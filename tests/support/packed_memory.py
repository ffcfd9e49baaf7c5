"""By how much a step raises a process's peak of memory: `python -m support.packed_memory WAY`.

A way is "torch", or an instruction set, which runs exact and with int8. The experts are packed NF4;
were they ever dequantized together, the peak would show it.
"""

from __future__ import annotations

import resource
import sys
from typing import Final

import torch

from novamesh_engine.kernels import choice
from novamesh_engine.models.attention import Attention
from novamesh_engine.models.config import ModelConfig
from novamesh_engine.models.decoder import Decoder, Layer
from novamesh_engine.models.layers import Linear, Norm
from novamesh_engine.models.moe import MoE, Router
from novamesh_engine.models.rope import Rope
from novamesh_engine.models.rotary import Rotary
from novamesh_engine.quant.codebook import NF4Matrix
from support.tiny_moe import Part, PlainKV, make_batch, nova_config

HIDDEN: Final = 1024
EXPERTS: Final = 16
SIZE: Final = 1024
STACK_BYTES: Final = EXPERTS * 3 * SIZE * HIDDEN * 4  # 192 MiB, were it ever dequantized


def random_nf4(*shape: int) -> NF4Matrix:
    *rows, width = shape
    packed = torch.randint(0, 256, (*rows, width // 2), dtype=torch.uint8)
    return NF4Matrix(packed, torch.full((*rows, width // 64), 0.01).half())


def decoder(config: ModelConfig) -> Decoder:
    ones = torch.ones(HIDDEN)
    norm = Norm(ones, None, 1e-5, False)
    width = config.head_dim
    attention = Attention(
        0, 4, 4, width, Linear(random_nf4(12 * width, HIDDEN)),
        Linear(random_nf4(HIDDEN, 4 * width)),
    )  # fmt: skip
    router = Router(torch.randn(EXPERTS, HIDDEN), "softmax", 2, True, 0.0)
    moe = MoE(router, random_nf4(EXPERTS, 2 * SIZE, HIDDEN), random_nf4(EXPERTS, HIDDEN, SIZE))
    embedding = torch.randn(64, HIDDEN).half()
    rotary = Rotary.create(Rope("default", 1e4), width)
    layer = Layer(norm, attention, norm, moe)
    return Decoder(config, embedding, rotary, (layer,), norm, Linear(embedding))


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def grown(way: str) -> int:
    """Bytes by which prefill and decode raise this process's peak."""
    config = ModelConfig.from_dict(
        nova_config(num_attention_heads=4, num_key_value_heads=4, head_dim=64, num_hidden_layers=1)
    )
    model, kv = decoder(config), PlainKV(config)
    forwards = [model.forward]
    if way != "torch":
        opened = [choice.open_native(2, precision, way) for precision in ("exact", "int8")]
        forwards = [choice.NativeForward(model, native).forward for native in opened]
    prompt, last = Part(0, 0, [*range(48)]), Part(0, 48, [1])
    before = peak_bytes()
    for forward in forwards:
        for part in (prompt, last):
            assert bool(torch.isfinite(forward(make_batch(kv, [part]), kv)).all())
    return peak_bytes() - before


if __name__ == "__main__":
    print(grown(sys.argv[1]))
