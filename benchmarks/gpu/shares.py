"""Each kernel of a lone token beside a copy: the bytes it must move, over its time.

A run launches a kernel once for every layer, so that each launch reads other weights; as a graph,
with the L2 cache overwritten before it. So the time holds the gaps between kernels as a step does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from cpu.figures import Figure
from torch import Tensor

from gpu.correct import fill
from gpu.shapes import PAGE
from gpu.stage import Stage
from novamesh_engine.kernels.device_step import DeviceStep, pack
from novamesh_engine.kernels.gpu import Gpu
from novamesh_engine.kernels.gpu_attention import GpuAttention, choose_splits
from novamesh_engine.kernels.reference import Matrix
from novamesh_engine.kernels.tuning import Cut, Run, Tuning
from novamesh_engine.kv_cache import DTYPES, PagedKV, slot_bytes
from novamesh_engine.models.batch import ForwardBatch
from novamesh_engine.models.decoder import Decoder
from novamesh_engine.models.layers import Linear, Norm
from novamesh_engine.models.moe import MoE
from novamesh_engine.quant.codebook import NF4Matrix

GROUPED_TOKENS = 16
HEADS_BYTES = 256 << 20  # of copies of the head, so that each launch reads another

Launch = Callable[[], None]


class Captured(Tuning):
    """Keeps what each kernel was asked to do, so that it can be launched by itself."""

    def __init__(self, of: Tuning) -> None:
        super().__init__()
        self._of = of
        self.launches: dict[str, list[Launch]] = {}

    def cut(self, kernel: str, shape: tuple[int, ...], tokens: int, run: Run) -> Cut:
        """The cut of the tuning behind it."""
        found = self._of.cut(kernel, shape, tokens, run)
        self.launches.setdefault(kernel, []).append(partial(run, found))
        return found


@torch.inference_mode()
def shares(stage: Stage, name: str, decoder: Decoder) -> None:
    """qkv, output, head; the experts of one token and of several; attention over a long context."""
    layers = [layer.attention for layer in decoder.layers]
    norms = [layer.attention_norm for layer in decoder.layers]
    _linear(stage, f"{name}: qkv", "", [(one.qkv, norm) for one, norm in zip(layers, norms)])  # noqa: B905
    _linear(stage, f"{name}: output", "", [(one.output, None) for one in layers])
    _linear(stage, f"{name}: head", "head", [(one, decoder.norm) for one in _heads(stage, decoder)])
    moes = [layer.mlp for layer in decoder.layers if isinstance(layer.mlp, MoE)]
    _experts(stage, name, moes)
    _grouped(stage, name, moes)
    for kind in stage.device.kv:
        _attention(stage, name, decoder, kind)


def _share(stage: Stage, name: str, line: str, launches: Sequence[Launch], moved: float) -> None:
    """A row: `moved` are the bytes of a launch."""
    figure = Figure(f"{name}, share of copy", "%", **stage.bar(line))

    def run() -> None:
        for launch in launches:
            launch()

    least_us = moved / stage.copy_bytes_s * 1e6
    for took_s in stage.device.cold(stage.device.recorded(run), stage.extent.runs):
        gb_s = moved * len(launches) / took_s / 1e9
        share = 100e9 * gb_s / stage.copy_bytes_s
        figure.add(share, GB_s=gb_s, us=took_s / len(launches) * 1e6, floor_us=least_us)
    stage.show(figure)


def _linear(
    stage: Stage, name: str, line: str, parts: Sequence[tuple[Linear, Norm | None]]
) -> None:
    """A token's row times one matrix after another."""
    captured, gpu = _gpu(stage)
    for linear, norm in parts:
        x = torch.randn((1, linear.weight.shape[1]), device=gpu.device)
        gpu.linear(x, linear.weight, linear.bias, norm)
    first = parts[0][0]
    moved = matrix_bytes(first.weight) + 4 * sum(first.weight.shape)
    _share(stage, name, line, captured.launches["rows"], moved)


def _heads(stage: Stage, decoder: Decoder) -> list[Linear]:
    """The head and copies of it, as many as the cache needs and memory allows."""
    head = decoder.head
    size = matrix_bytes(head.weight)
    copies = max(0, min(HEADS_BYTES // size, stage.device.free_bytes() // 2 // size, 7))
    return [head, *(Linear(_copy(head.weight), head.bias) for _ in range(copies))]


def _experts(stage: Stage, name: str, moes: Sequence[MoE]) -> None:
    """One token's experts in each layer, chosen at random; both halves by themselves."""
    captured, gpu = _gpu(stage)
    efforts = torch.full((1,), 1 << 15, dtype=torch.int32, device=gpu.device)
    router = moes[0].router
    experts, hidden = router.weight.shape
    for moe in moes:
        x, residual = torch.randn((2, 1, hidden), device=gpu.device)
        scores = torch.randn((1, experts), device=gpu.device)
        gpu.experts(x, scores, moe.router, efforts, moe.gate_up, moe.down, residual)
    chosen = router.experts_per_token
    wide, size = moes[0].gate_up.shape[1], moes[0].down.shape[2]
    first = chosen / experts * matrix_bytes(moes[0].gate_up) + 4 * (hidden + chosen * size)
    second = chosen / experts * matrix_bytes(moes[0].down) + 4 * (chosen * size + 2 * hidden)
    assert wide == 2 * size
    _share(stage, f"{name}: experts' gate_up", "expert GEMV", captured.launches["gate_up"], first)
    _share(stage, f"{name}: experts' down", "expert GEMV", captured.launches["down"], second)


def _grouped(stage: Stage, name: str, moes: Sequence[MoE]) -> None:
    """Several tokens' experts, sorted: each expert that anyone chose is read once."""
    captured, gpu = _gpu(stage)
    tokens, router = GROUPED_TOKENS, moes[0].router
    efforts = torch.full((tokens,), 1 << 15, dtype=torch.int32, device=gpu.device)
    experts, hidden = router.weight.shape
    touched = 0
    for moe in moes:
        x, residual = torch.randn((2, tokens, hidden), device=gpu.device)
        scores = torch.randn((tokens, experts), device=gpu.device)
        slots = gpu.route(scores, moe.router, efforts)
        touched += torch.unique(slots[0]).numel()
        gpu.grouped(x.to(gpu.compute), slots, moe.gate_up, moe.down, residual)
    part = touched / len(moes) / experts
    for kernel, matrix in (("gate_up", moes[0].gate_up), ("down", moes[0].down)):
        launches = captured.launches[f"grouped_{kernel}"]
        label = f"{name}: experts' {kernel}, {tokens} tokens"
        _share(stage, label, "", launches, part * matrix_bytes(matrix))


def _attention(stage: Stage, name: str, decoder: Decoder, kind: str) -> None:
    """A lone token's attention in each layer, over as many tokens as the model sees."""
    device, config = stage.device, decoder.config
    context = min(stage.extent.context, config.max_context)
    pages, dtype = context // PAGE, DTYPES[kind]
    kv = PagedKV(config, pages, PAGE, dtype, device.name)
    for layer in range(config.layers):
        for cache, scales in (
            (kv.keys(layer), kv.key_scales(layer)), (kv.values(layer), kv.value_scales(layer)),
        ):  # fmt: skip
            cache.copy_(fill(cache))
            if scales is not None:
                scales.fill_(0.01)
    _, gpu = _gpu(stage)
    length = pages * PAGE
    step = pack(_last_of(pages), 1, 1, 1, pages)
    step = DeviceStep(step.buffer.to(device.name), 1, 1)
    angles = decoder.rotary.angles(step.positions, step.rope_lengths)
    splits = choose_splits(config.kv_heads, device.processors, length)
    rows = torch.randn((1, config.query_size + 2 * config.key_size), device=device.name)
    attentions = [GpuAttention(gpu, layer.attention) for layer in decoder.layers]
    launches = [partial(_lone, one, rows, angles, step, kv, splits) for one in attentions]
    seen = sum(min(length, window or length) for window in config.windows)
    moved = seen * slot_bytes(config, dtype) / config.layers**2
    _share(stage, f"{name}: attention, {length} tokens, {kind}", "", launches, moved)


def _lone(
    attention: GpuAttention,
    rows: Tensor,
    angles: tuple[Tensor, Tensor],
    step: DeviceStep,
    kv: PagedKV,
    splits: int,
) -> None:
    attention.lone(rows, angles, step, kv, splits)


def _last_of(pages: int) -> ForwardBatch:
    """The last token of a sequence that fills these pages."""
    last = torch.tensor([pages * PAGE - 1])
    return ForwardBatch(
        token_ids=torch.tensor([0]),
        positions=last,
        sequence_starts=torch.tensor([0, 1], dtype=torch.int32),
        context_lengths=torch.tensor([pages * PAGE], dtype=torch.int32),
        block_tables=torch.arange(pages, dtype=torch.int32)[None],
        slots=last,
        rope_lengths=last + 1,
        logit_rows=torch.tensor([0]),
    )


def _gpu(stage: Stage) -> tuple[Captured, Gpu]:
    captured = Captured(stage.device.tuning)
    return captured, Gpu(stage.device.name, stage.device.compute, captured)


def matrix_bytes(matrix: Matrix) -> int:
    """What a matrix or a stack takes."""
    if isinstance(matrix, NF4Matrix):
        return matrix.packed.nbytes + matrix.absmax.nbytes
    return matrix.nbytes


def _copy(matrix: Matrix) -> Matrix:
    if isinstance(matrix, NF4Matrix):
        return NF4Matrix(matrix.packed.clone(), matrix.absmax.clone())
    return matrix.clone()
