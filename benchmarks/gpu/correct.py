"""Every kernel against float64 on random inputs, one layer of a shape: before anything is timed.

What is compared is the relative L2 distance. Bounds are of float32 where a kernel computes in it,
else of the type that tensor cores multiply in.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from gpu import exact
from gpu.device import Device
from gpu.shapes import PAGE
from gpu.weights import build
from novamesh_engine.kernels.device_step import DeviceStep, pack
from novamesh_engine.kernels.gpu import Gpu, token_tile
from novamesh_engine.kernels.gpu_attention import GpuAttention, Span
from novamesh_engine.kv_cache import DTYPES, PagedKV
from novamesh_engine.models.batch import ForwardBatch
from novamesh_engine.models.config import ModelConfig
from novamesh_engine.models.decoder import Layer
from novamesh_engine.models.moe import MoE
from novamesh_engine.models.rotary import Rotary
from novamesh_engine.quant.codebook import NF4Matrix

EXACT: Final = 2e-5
ROUNDED: Final = {torch.float32: EXACT, torch.float16: 3e-3, torch.bfloat16: 1.5e-2}
STEP: Final = 3e-3  # a few elements of a cache rounded to their other neighbour
LONGEST: Final = 300  # tokens of a context here
VOCAB: Final = 4096
SPLITS: Final = (1, 4)
LONE: Final = (1, 37, LONGEST)  # contexts, a page of which is not full

Found = tuple[str, Tensor, Tensor, float]  # a kernel, what it gave, what it should, the bound


class WrongError(AssertionError):
    """A kernel does not compute what it should."""


@dataclass(frozen=True, slots=True)
class Checks:
    """The kernels of one device on one layer."""

    gpu: Gpu
    layer: Layer
    rotary: Rotary
    config: ModelConfig
    kv: tuple[str, ...]

    @property
    def moe(self) -> MoE:
        """The layer's; the shapes here have no dense ones."""
        assert isinstance(self.layer.mlp, MoE)
        return self.layer.mlp

    @property
    def rounded(self) -> float:
        """The bound of what is multiplied on tensor cores."""
        return ROUNDED[self.gpu.compute]

    def all(self) -> Iterator[Found]:
        """Every kernel that a step launches, few tokens or many."""
        yield from self.linear()
        yield from self.routing()
        yield from self.experts()
        for kind in self.kv:
            for splits in SPLITS:
                yield from self.lone(kind, splits)
            yield from self.chunks(kind)

    def linear(self) -> Iterator[Found]:
        """qkv with its norm, the output with its residual, row by row and in tiles."""
        gpu, norm = self.gpu, self.layer.attention_norm
        qkv, output = self.layer.attention.qkv, self.layer.attention.output
        x, seen = self.random(2, qkv.weight.shape[1]), self.random(2, output.weight.shape[1])
        should = exact.linear(exact.normalise(x, norm), qkv.weight, qkv.bias)
        yield "rows, norm", gpu.linear(x, qkv.weight, qkv.bias, norm), should, EXACT
        found = gpu.linear(seen, output.weight, output.bias, residual=x)
        should = exact.linear(seen, output.weight, output.bias, x)
        yield "rows, residual", found, should, EXACT
        plain = exact.widen(output.weight).to(torch.bfloat16)
        yield "rows, bf16", gpu.linear(seen, plain), exact.linear(seen, plain), EXACT
        for tokens in (5, 40):
            x, seen = (self.random(tokens, part.weight.shape[1]) for part in (qkv, output))
            yield "norm", gpu.normalise(x, norm), exact.normalise(x, norm), self.rounded
            rows = seen.to(gpu.compute)
            found = gpu.tiles(rows, output.weight, output.bias, x)
            should = exact.linear(rows, output.weight, output.bias, x)
            yield f"tiles of {token_tile(tokens)}", found, should, self.rounded
            found, should = gpu.tiles(rows, plain), exact.linear(rows, plain)
            yield f"tiles of {token_tile(tokens)}, bf16", found, should, self.rounded
        assert isinstance(output.weight, NF4Matrix)
        found, should = gpu.unpack(output.weight), exact.widen(output.weight)
        yield "unpack", found, should, self.rounded

    def routing(self) -> Iterator[Found]:
        """Scores and the choice of experts, with slots that stay empty."""
        gpu, router, norm = self.gpu, self.moe.router, self.layer.mlp_norm
        x = self.random(4, self.config.hidden_size)
        normed, scores = gpu.scores(x, norm, router.weight, torch.float32)
        yield "scores, norm", normed, exact.normalise(x, norm), EXACT
        yield "scores", scores, exact.linear(exact.normalise(x, norm), router.weight), EXACT
        efforts = self.efforts(4)
        ids, factors = gpu.route(scores, router, efforts)
        experts = router.weight.shape[0]
        found = exact.spread((factors, ids), experts)
        should = exact.spread(exact.route(scores, router, efforts), experts)
        yield "route", found, should, EXACT

    def experts(self) -> Iterator[Found]:
        """Few tokens pair by pair, many sorted on tensor cores."""
        gpu, moe = self.gpu, self.moe
        count, hidden, router = moe.router.weight.shape[0], self.config.hidden_size, moe.router
        stacks = moe.gate_up, moe.down
        x, scores, residual = self.random(3, hidden), self.random(3, count), self.random(3, hidden)
        efforts = self.efforts(3)
        routing = exact.route(scores, router, efforts)
        found = gpu.experts(x, scores, router, efforts, *stacks, residual)
        yield "experts", found, exact.experts(x, routing, stacks, residual), EXACT
        slots = routing[1].int(), routing[0].float()
        found = gpu.pairs(x, slots, *stacks, residual)
        yield "experts, given", found, exact.experts(x, routing, stacks, residual), EXACT
        for tokens in (5, 34 * count // router.experts_per_token):
            x, residual = self.random(tokens, hidden).to(gpu.compute), self.random(tokens, hidden)
            routing = exact.route(self.random(tokens, count), router, self.efforts(tokens))
            slots = routing[1].int(), routing[0].float()
            found = gpu.grouped(x, slots, *stacks, residual)
            should = exact.experts(x, routing, stacks, residual)
            tile = token_tile(slots[0].numel() // count)
            yield f"experts in tiles of {tile}", found, should, self.rounded

    def lone(self, kind: str, splits: int) -> Iterator[Found]:
        """Single tokens of sequences of different lengths."""
        spans = [Span(at, at + 1, min(n, self.longest), at) for at, n in enumerate(LONE)]
        attention = GpuAttention(self.gpu, self.layer.attention)
        name = f"attention, {kind}, {splits} parts"
        yield from self._attention(
            name, kind, spans, lambda qkv, angles, step, kv: attention.lone(
                qkv, angles, step, kv, splits
            )
        )  # fmt: skip

    def chunks(self, kind: str) -> Iterator[Found]:
        """Parts of prompts: a whole one, and the end of a longer one."""
        spans = [Span(0, 5, 5, 0), Span(5, 12, self.longest, 1)]
        attention = GpuAttention(self.gpu, self.layer.attention)
        yield from self._attention(
            f"chunks, {kind}", kind, spans, lambda qkv, angles, step, kv: attention.chunks(
                qkv, angles, step, kv, spans
            )
        )  # fmt: skip

    def _attention(self, name, kind, spans, run) -> Iterator[Found]:
        """A step of these sequences on two equal caches, and what both then hold."""
        of, device = self.layer.attention, self.gpu.device
        pages = -(-self.longest // PAGE)
        mine, other = self._caches(kind, pages * len(spans))
        batch = _batch(spans, pages)
        tokens = batch.positions.shape[0]
        step = pack(batch, 1, tokens, len(spans), pages)
        step = DeviceStep(step.buffer.to(device), tokens, len(spans))
        angles = self.rotary.angles(step.positions, step.rope_lengths)
        qkv = self.random(tokens, of.qkv.weight.shape[0])
        found = run(qkv, angles, step, mine)
        query = exact.place(qkv, angles, of, other, step.slots)
        should = torch.cat([
            exact.attend(query[span.start : span.stop], of, other, span, step.tables[span.row])
            for span in spans
        ])  # fmt: skip
        yield name, found, should, max(self.rounded, 2e-3 if kind != "fp32" else EXACT)
        for part, wrote, expected in (
            ("keys", mine.keys(0), other.keys(0)), ("values", mine.values(0), other.values(0)),
        ):  # fmt: skip
            wrote, expected = (cache[step.slots // PAGE, :, step.slots % PAGE]
                               for cache in (wrote, expected))  # fmt: skip
            yield f"{name}: {part}", wrote, expected, EXACT if kind == "fp32" else STEP

    def _caches(self, kind: str, pages: int) -> tuple[PagedKV, PagedKV]:
        config = replace(self.config, layers=1)
        mine, other = (
            PagedKV(config, pages, PAGE, DTYPES[kind], self.gpu.device) for _ in range(2)
        )
        for one, same in ((mine.keys(0), other.keys(0)), (mine.values(0), other.values(0))):
            one.copy_(fill(one))
            same.copy_(one)
        for cache in (mine, other):
            for scales in (cache.key_scales(0), cache.value_scales(0)):
                if scales is not None:
                    scales.fill_(0.01)
        return mine, other

    @property
    def longest(self) -> int:
        """The longest context here."""
        return min(LONGEST, self.config.max_context)

    def random(self, *shape: int) -> Tensor:
        """Normal numbers."""
        return torch.randn(shape, device=self.gpu.device)

    def efforts(self, tokens: int) -> Tensor:
        """Every slot, but none for the second token and one for the third."""
        efforts = torch.full((tokens,), 1 << 15, dtype=torch.int32)
        efforts[1:3] = torch.tensor([0, 1])
        return efforts.to(self.gpu.device)


def fill(cache: Tensor) -> Tensor:
    """Random contents for a cache."""
    if cache.dtype == torch.int8:
        return torch.randint(-127, 128, cache.shape, dtype=torch.int8, device=cache.device)
    return torch.empty_like(cache).normal_()


def _batch(spans: list[Span], pages: int) -> ForwardBatch:
    """The last tokens of sequences, each on pages of its own."""
    tables = torch.arange(len(spans) * pages, dtype=torch.int32).view(len(spans), pages)
    positions = [
        (span.row, at)
        for span in spans
        for at in range(span.length - (span.stop - span.start), span.length)
    ]
    at = torch.tensor([position for _, position in positions])
    return ForwardBatch(
        token_ids=torch.zeros_like(at),
        positions=at,
        sequence_starts=torch.tensor([0, *(span.stop for span in spans)], dtype=torch.int32),
        context_lengths=torch.tensor([span.length for span in spans], dtype=torch.int32),
        block_tables=tables,
        slots=torch.tensor([row * pages * PAGE + position for row, position in positions]),
        rope_lengths=at + 1,
        logit_rows=at.new_zeros(1),
    )


@torch.inference_mode()
def check(device: Device, name: str, config: ModelConfig) -> dict[str, float]:
    """The relative distance of every kernel from float64.

    Raises: WrongError naming the first kernel that is too far off.
    """
    one = replace(
        config, layers=1, windows=config.windows[:1], vocab_size=min(config.vocab_size, VOCAB)
    )
    decoder = build(one, device.name)
    gpu = Gpu(device.name, device.compute, device.tuning)
    checks = Checks(gpu, decoder.layers[0], decoder.rotary, one, device.kv)
    found: dict[str, float] = {}
    for kernel, gave, should, bound in checks.all():
        wide = should.double()
        distance = float((gave.double() - wide).norm() / wide.norm())
        found[kernel] = max(distance, found.get(kernel, 0.0))
        if not distance <= bound:
            raise WrongError(
                f"{name}: kernel '{kernel}' is {distance:.1e} from float64 on {device.card},"
                f" more than {bound:.0e}: nothing was timed"
            )
    return found
