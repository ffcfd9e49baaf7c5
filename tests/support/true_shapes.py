"""Decoders of published models' shapes, whose numbers mean nothing, and steps that run on them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import torch

from novamesh_engine.kernels.reference import Matrix
from novamesh_engine.kv_cache import DTYPES, PagedKV
from novamesh_engine.models.batch import ForwardBatch
from novamesh_engine.models.config import ModelConfig
from novamesh_engine.models.decoder import Decoder
from novamesh_engine.models.traits import Naming
from novamesh_engine.quant.codebook import BLOCK, NF4Matrix
from novamesh_engine.weights.load import assemble
from novamesh_engine.weights.names import Piece
from support.known_models import OLMOE_1B_7B, PHI_MINI, QWEN3_30B, QWEN15_A27B

# One layer each; the vocabulary is what a head's kernel does not depend on.
ONE: Final = {"num_hidden_layers": 1, "vocab_size": 4096}
SHAPES: Final[tuple[dict[str, Any], ...]] = tuple(
    shape | ONE for shape in (PHI_MINI, OLMOE_1B_7B, QWEN3_30B, QWEN15_A27B)
)


@dataclass(frozen=True)
class Blank:
    """Pieces of the right shape and form, and of any content."""

    config: ModelConfig
    device: str = "cpu"

    @property
    def naming(self) -> Naming:
        return self.config.traits.namings[0]

    def take(self, piece: Piece) -> Matrix:
        if piece.form != "nf4":
            return torch.empty(piece.shape, dtype=getattr(torch, piece.form), device=self.device)
        *rows, width = piece.shape
        return NF4Matrix(
            torch.empty((*rows, width // 2), dtype=torch.uint8, device=self.device),
            torch.empty((*rows, width // BLOCK), dtype=torch.float16, device=self.device),
        )


def build(shape: dict[str, Any]) -> Decoder:
    """A decoder of a config's shape."""
    return assemble(Blank(ModelConfig.from_dict(shape)))


def steps(model: Decoder, short: bool = False) -> Iterator[tuple[ForwardBatch, PagedKV]]:
    """One step of each kind: 1, 4 and 8 lone tokens, a long chunk of a prompt.

    And with a cache of int8, unless it is to be `short`.
    """
    known = (("bf16", ((1, 0), (4, 0), (8, 0), (0, 1024))), ("int8", ((1, 0), (0, 8))))
    for dtype, kinds in known[:1] if short else known:
        kv = PagedKV(model.config, 128, 16, DTYPES[dtype], "cpu")
        for lone, chunk in kinds:
            yield batch_of([1] * lone + [chunk] * (chunk > 0), 400), kv


def batch_of(counts: list[int], context: int) -> ForwardBatch:
    """So many new tokens of each sequence, all of which are `context` long or just these."""
    lengths = [max(count, context) for count in counts]
    starts = [0]
    for count in counts:
        starts.append(starts[-1] + count)
    positions = [at for n, end in zip(counts, lengths, strict=True) for at in range(end - n, end)]
    numbers = torch.tensor(positions)
    return ForwardBatch(
        token_ids=torch.zeros_like(numbers),
        positions=numbers,
        sequence_starts=torch.tensor(starts, dtype=torch.int32),
        context_lengths=torch.tensor(lengths, dtype=torch.int32),
        block_tables=torch.zeros((len(counts), 128), dtype=torch.int32),
        slots=numbers,
        rope_lengths=numbers + 1,
        logit_rows=torch.arange(len(positions)),
    )
