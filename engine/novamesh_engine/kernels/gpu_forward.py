"""A whole decoder on a device: `Decoder.forward` in Triton kernels, few tokens or many.

A step in which every sequence has one new token runs six or seven launches a layer, and as a CUDA
graph where nothing of it happens on the host. Rules: norms, routers, sums and the residual are
float32; a few tokens are multiplied on CUDA cores in float32, more on tensor cores in the compute
type. So a token alone and in a batch agree to the compute type's rounding, not bit by bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from novamesh_engine.kernels.cards import AMPERE, Card, on_device
from novamesh_engine.kernels.device_step import DeviceStep, pack
from novamesh_engine.kernels.gpu import Gpu
from novamesh_engine.kernels.gpu_attention import GpuAttention, Span, choose_splits
from novamesh_engine.kernels.gpu_mlp import GpuMLP
from novamesh_engine.kernels.graphs import CudaRecorder, Graphs, Recorder
from novamesh_engine.kernels.native import Native
from novamesh_engine.kernels.stopwatch import cuda_timer
from novamesh_engine.kernels.tiers import Stack, TieredExperts
from novamesh_engine.kernels.tuning import CUTS, TURING_CUTS, Tuning, tuning_file
from novamesh_engine.models.batch import ForwardBatch, KVCache
from novamesh_engine.models.decoder import Decoder
from novamesh_engine.models.layers import Linear, Norm
from novamesh_engine.models.moe import MoE
from novamesh_engine.quant.codebook import NF4Matrix

BUCKETS: Final = (1, 2, 4, 8, 16, 32)
# Tokens up to which each reads its weights by itself: more share them on tensor cores.
ROWS_MAX: Final = 2
# Tokens from which unpacking a matrix for torch's own product costs less than it saves.
UNPACK_TOKENS: Final = 1024

_EFFORT: Final = 1 << 15  # every slot
_SHORT: Final = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


class GpuForward:
    """`Decoder.forward` on Triton kernels.

    `tiers` holds the experts of layers that lie on two sides, by layer; `recorder` makes graphs,
    None launches every kernel each time; `processors` is how many programs run at once.
    """

    def __init__(
        self,
        decoder: Decoder,
        gpu: Gpu,
        processors: int = 1,
        tiers: dict[int, TieredExperts] | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        kind = str(gpu.compute).removeprefix("torch.")
        self.name = f"triton-{_SHORT[kind]}{'-tiered' if tiers else ''}"
        self.precision = "exact" if gpu.compute == torch.float32 else _SHORT[kind]
        self.threads = 1
        self._decoder = decoder
        self._gpu = gpu
        self._processors = processors
        self._mlps = [GpuMLP(gpu, layer.mlp, (tiers or {}).get(at))
                      for at, layer in enumerate(decoder.layers)]  # fmt: skip
        self._attentions = [GpuAttention(gpu, layer.attention) for layer in decoder.layers]
        on_host = tiers or decoder.config.rope.kind == "dynamic"  # whose angles ask for numbers
        self._graphs = None if recorder is None or on_host else Graphs(recorder)
        self._kv: KVCache | None = None
        self._logits: Tensor | None = None

    @property
    def why(self) -> str:
        """Why steps are not replayed from recordings; empty where they are, or never are."""
        return "" if self._graphs is None else self._graphs.broken

    @torch.inference_mode()
    def forward(self, batch: ForwardBatch, kv: KVCache) -> Tensor:
        """Logits float32 [R, vocab] on the device, as `Decoder.forward` defines them.

        What a step returned is overwritten by the next.
        """
        with on_device(self._gpu.device):
            return self._forward(batch, kv)

    def _forward(self, batch: ForwardBatch, kv: KVCache) -> Tensor:
        spans = _spans(batch)
        lone = sum(1 for span in spans if span.stop - span.start == 1 and span.row == span.start)
        tokens = batch.token_ids.shape[0]
        x = self._embed(batch.token_ids)
        if lone == tokens <= BUCKETS[-1]:
            logits = self._decode(x, batch, kv)
            rows = batch.logit_rows
            if torch.equal(rows, torch.arange(tokens)):
                return logits[:tokens]
            return logits[rows.to(logits.device)]
        step = pack(batch, _EFFORT, tokens, *batch.block_tables.shape)
        step = DeviceStep(step.buffer.to(self._gpu.device), tokens, step.sequences)
        rows = batch.logit_rows.to(x.device)
        x = self._layers(x, step, kv, spans, lone)
        if not rows.numel():
            return x.new_empty((0, self._decoder.head.weight.shape[0]))
        return self._head(x[rows])

    def _decode(self, x: Tensor, batch: ForwardBatch, kv: KVCache) -> Tensor:
        """Every sequence has one new token: padded to a bucket, so that few graphs do for all."""
        tokens, (_, width) = x.shape[0], batch.block_tables.shape
        bucket = next(size for size in BUCKETS if size >= tokens)
        width = 1 << (width - 1).bit_length()
        step = pack(batch, _EFFORT, bucket, bucket, width)
        x = torch.nn.functional.pad(x, (0, 0, 0, bucket - tokens))

        def work(x: Tensor, buffer: Tensor) -> Tensor:
            step = DeviceStep(buffer, bucket, bucket)
            return self._share(self._head(self._layers(x, step, kv, (), bucket)))

        if self._graphs is None:
            return work(x, step.buffer.to(x.device))
        if kv is not self._kv:  # recordings write where the other cache was
            self._graphs.forget()
            self._kv = kv
        return self._graphs.run((bucket, width), work, x, step.buffer)

    def _share(self, logits: Tensor) -> Tensor:
        """The logits in memory that all recordings share, as one result is read at a time."""
        if self._graphs is None:
            return logits
        if self._logits is None:
            self._logits = logits.new_empty((BUCKETS[-1], logits.shape[1]))
        return self._logits[: logits.shape[0]].copy_(logits)

    def _layers(
        self, x: Tensor, step: DeviceStep, kv: KVCache, spans: Sequence[Span], lone: int
    ) -> Tensor:
        """All layers; the first `lone` tokens are alone in their sequences, spans are the rest."""
        angles = self._decoder.rotary.angles(step.positions, step.rope_lengths)
        angles = angles[0].contiguous(), angles[1].contiguous()
        context = step.tables.shape[1] * kv.keys(0).shape[2]
        programs = max(1, lone) * self._decoder.layers[0].attention.kv_heads
        splits = choose_splits(programs, self._processors, context)
        for at, layer in enumerate(self._decoder.layers):
            attention = self._attentions[at]
            qkv = self._linear(x, layer.attention.qkv, layer.attention_norm)
            seen = attention(qkv, angles, step, kv, (spans[lone:], lone, splits))
            x = self._linear(seen, layer.attention.output, None, x)
            x = self._mlps[at](x, layer.mlp_norm, step.efforts)
        return x

    def _head(self, x: Tensor) -> Tensor:
        return self._linear(x, self._decoder.head, self._decoder.norm)

    def _linear(
        self, x: Tensor, linear: Linear, norm: Norm | None, residual: Tensor | None = None
    ) -> Tensor:
        """residual + linear(norm(x)), by what is best for so many tokens."""
        gpu, tokens, weight = self._gpu, x.shape[0], linear.weight
        if tokens <= ROWS_MAX:
            return gpu.linear(x, weight, linear.bias, norm, residual)
        rows = x.to(gpu.compute) if norm is None else gpu.normalise(x, norm)
        if tokens < UNPACK_TOKENS or not isinstance(weight, NF4Matrix):
            return gpu.tiles(rows, weight, linear.bias, residual)
        out = (rows @ gpu.unpack(weight).T).float()
        out = out if linear.bias is None else out + linear.bias
        return out if residual is None else out + residual

    def _embed(self, ids: Tensor) -> Tensor:
        """Where the embedding lies, and from there to the device."""
        table = self._decoder.embedding
        rows = torch.nn.functional.embedding(ids.to(table.device), table).float()
        return rows.to(self._gpu.device, non_blocking=True)


def _spans(batch: ForwardBatch) -> list[Span]:
    starts, lengths = batch.sequence_starts.tolist(), batch.context_lengths.tolist()
    return [
        Span(starts[row], starts[row + 1], length, row) for row, length in enumerate(lengths)
    ]  # fmt: skip


def build_forward(
    decoder: Decoder,
    device: str,
    card: Card,
    compute: torch.dtype,
    resident: Sequence[Sequence[int]] = (),
    native: Native | None = None,
    tuning: str = "",
) -> GpuForward:
    """The forward of a decoder on a card.

    Where `resident` names experts, one row for each layer with experts, the others stay where they
    lie and `native` computes them. `tuning` is a folder, "" for defaults.
    """
    cuda = torch.device(device).type == "cuda"
    cuts = CUTS if card.rocm or card.capability >= AMPERE else TURING_CUTS
    measured = Tuning(cuts=cuts)
    if tuning and cuda:
        measured = Tuning(tuning_file(Path(tuning), card.name), cuda_timer(device), cuts)
    gpu = Gpu(device, compute, measured)
    tiers: dict[int, TieredExperts] = {}
    buffers: list[Stack] = []
    for at, layer in enumerate(decoder.layers):
        if isinstance(layer.mlp, MoE) and resident:
            assert native is not None, "nobody computes the experts that stay"
            gate_up, down = layer.mlp.gate_up, layer.mlp.down
            assert isinstance(gate_up, NF4Matrix), "only packed experts lie on two sides"
            assert isinstance(down, NF4Matrix), "only packed experts lie on two sides"
            stack, held = (gate_up, down), resident[len(tiers)]
            tiers[at] = TieredExperts(gpu, native, stack, held, buffers)
    recorder = CudaRecorder(device) if cuda else None
    return GpuForward(decoder, gpu, card.processors, tiers, recorder)
