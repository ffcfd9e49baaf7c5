"""A decoder that speaks: single tokens of so many sequences, and prompts, by the wall's clock.

A step is a whole one: the batch made on the host, the forward as the engine runs it, the largest
logit read back. Tokens are drawn at random, so that no sequence follows another one's experts.
"""

from __future__ import annotations

import random
import time

import torch

from gpu.device import Device
from gpu.shapes import PAGE, Extent
from novamesh_engine.kv_cache import DTYPES, PagedKV
from novamesh_engine.models.batch import ForwardBatch
from novamesh_engine.models.decoder import Decoder


class Speaker:
    """One decoder on one device, with a cache for the largest batch and the longest prompt."""

    def __init__(self, device: Device, decoder: Decoder, extent: Extent) -> None:
        self.decoder = decoder
        self._device = device
        self._extent = extent
        self._forward = device.forward(decoder)
        blocks = max(max(extent.batches) * extent.pages, -(-max(extent.prompts) // PAGE))
        self._kv = PagedKV(decoder.config, blocks, PAGE, DTYPES[device.kv[0]], device.name)
        self._random = random.Random(0)

    def step_s(self, batch: int, steps: int | None = None) -> float:
        """Seconds of a step of so many sequences, over a round of steps."""
        device, extent = self._device, self._extent
        count = extent.steps if steps is None else steps
        drawn = [self._tokens(batch) for _ in range(count)]
        device.wait()
        begun = time.perf_counter()
        for at, tokens in enumerate(drawn):
            self._step(tokens, extent.depth + at)
        return (time.perf_counter() - begun) / max(1, count)

    def warm(self, batch: int) -> None:
        """The first steps, which compile, tune and record."""
        self.step_s(batch, self._extent.warm)

    def prompt_s(self, tokens: int) -> float:
        """Seconds until the first token of an answer to a prompt, read in one step."""
        drawn = self._tokens(tokens)
        self._device.wait()
        begun = time.perf_counter()
        logits = self._forward.forward(_prompt(drawn), self._kv)
        logits.argmax(-1).tolist()
        return time.perf_counter() - begun

    def _step(self, tokens: list[int], position: int) -> None:
        logits = self._forward.forward(_lone(tokens, position, self._extent.pages), self._kv)
        logits.argmax(-1).tolist()

    def _tokens(self, count: int) -> list[int]:
        vocab = self.decoder.config.vocab_size
        return [self._random.randrange(vocab) for _ in range(count)]


def _lone(tokens: list[int], position: int, pages: int) -> ForwardBatch:
    """One new token of each sequence, all at one position, each on pages of its own."""
    count = len(tokens)
    first = torch.arange(count) * (pages * PAGE)
    return ForwardBatch(
        token_ids=torch.tensor(tokens),
        positions=torch.full((count,), position),
        sequence_starts=torch.arange(count + 1, dtype=torch.int32),
        context_lengths=torch.full((count,), position + 1, dtype=torch.int32),
        block_tables=torch.arange(count * pages, dtype=torch.int32).view(count, pages),
        slots=first + position,
        rope_lengths=torch.full((count,), position + 1),
        logit_rows=torch.arange(count),
    )


def _prompt(tokens: list[int]) -> ForwardBatch:
    """A whole prompt, whose last logits are wanted."""
    count = len(tokens)
    positions = torch.arange(count)
    return ForwardBatch(
        token_ids=torch.tensor(tokens),
        positions=positions,
        sequence_starts=torch.tensor([0, count], dtype=torch.int32),
        context_lengths=torch.tensor([count], dtype=torch.int32),
        block_tables=torch.arange(-(-count // PAGE), dtype=torch.int32)[None],
        slots=positions,
        rope_lengths=torch.full((count,), count),
        logit_rows=torch.tensor([count - 1]),
    )
