"""The Triton operations on one device, as `native.py` is for C++: shapes checked, kernels launched.

Each operation is defined by the reference function of its name. Rules: nothing here waits for the
device; no operation writes to what it reads, but for the cache; results are made here, float32
unless they are the next product's operand. On a CPU it runs under Triton's interpreter, for tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from novamesh_engine.kernels.reference import Matrix
from novamesh_engine.kernels.triton import experts as expert_kernels
from novamesh_engine.kernels.triton import grouped, linear, routing
from novamesh_engine.kernels.tuning import Cut, Run, Tuning
from novamesh_engine.models.layers import Norm
from novamesh_engine.models.moe import Router
from novamesh_engine.quant.codebook import NF4_VALUES, NF4Matrix

COMPUTE: Final = {
    torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16,
}  # fmt: skip
PAIRS: Final = 128  # pairs that one program of the sorting kernels takes
SORTED_MAX: Final = 1 << 14  # pairs that are sorted at once: their table of counts stays small


# Sizes of the sorting kernel's tables: few, as each is compiled once.
BLOCKS: Final = (1, 8, SORTED_MAX // PAIRS)
TILES: Final = (16, 128, 2048)
FEW: Final = 32  # tokens, up to which small tiles waste less than large ones save


@dataclass(frozen=True, slots=True)
class Sorted:
    """Pairs by expert: `order` int32 [tiles * tokens] and the expert of each tile int32 [tiles]."""

    order: Tensor
    experts: Tensor
    tokens: int


class Gpu:
    """Launches kernels; `compute` is the type that tensor cores multiply in."""

    def __init__(self, device: str, compute: torch.dtype, tuning: Tuning | None = None) -> None:
        self.device = device
        self.compute = compute
        self.tuning = tuning or Tuning()
        self._codes = torch.tensor(NF4_VALUES, dtype=torch.float32, device=device)

    def linear(
        self,
        x: Tensor,
        weight: Matrix,
        bias: Tensor | None = None,
        norm: Norm | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        """residual + weight · norm(x) + bias, row by row on CUDA cores: float32 [T, N]."""
        tokens, width, rows = x.shape[0], x.shape[1], weight.shape[0]
        out = self._floats(tokens, rows)
        data, absmax, packed = self._weights(weight)

        def run(cut: Cut) -> None:
            linear.rows_kernel[triton.cdiv(rows, cut.rows), tokens](
                x, *_norm(norm, x), data, absmax, self._codes, _or(bias, x), _or(residual, x), out,
                rows, K=width, WIDTH=triton.next_power_of_2(width), NORM=norm is not None,
                CENTRED=norm is not None and norm.centred,
                SHIFT=norm is not None and norm.bias is not None, PACKED=packed,
                BIAS=bias is not None, RESIDUAL=residual is not None,
                ROWS=cut.rows, GROUPS=cut.groups, **cut.launch,
            )  # fmt: skip

        run(self.cut("rows", (rows, width, packed), 1, run))
        return out

    def tiles(
        self,
        x: Tensor,
        weight: Matrix,
        bias: Tensor | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        """residual + weight · x + bias on tensor cores, x of the compute type: float32 [T, N]."""
        tokens, width, rows = x.shape[0], x.shape[1], weight.shape[0]
        out = self._floats(tokens, rows)
        data, absmax, packed = self._weights(weight)
        tile = token_tile(tokens)

        def run(cut: Cut) -> None:
            grid = triton.cdiv(tokens, tile), triton.cdiv(rows, cut.rows)
            linear.tile_kernel[grid](
                x, data, absmax, self._codes, _or(bias, x), _or(residual, out), out, tokens, rows,
                K=width, PACKED=packed, BIAS=bias is not None, RESIDUAL=residual is not None,
                COMPUTE=COMPUTE[self.compute], TOKENS=tile, ROWS=cut.rows, GROUPS=cut.groups,
                **cut.launch,
            )  # fmt: skip

        run(self.cut("tile", (rows, width, packed), tile, run))
        return out

    def normalise(self, x: Tensor, norm: Norm, dtype: torch.dtype | None = None) -> Tensor:
        """norm(x) [T, K] in a type, the compute type if none is named."""
        out = torch.empty_like(x, dtype=dtype or self.compute)
        linear.norm_kernel[(x.shape[0],)](
            x, *_norm(norm, x), out, K=x.shape[1], WIDTH=triton.next_power_of_2(x.shape[1]),
            CENTRED=norm.centred, SHIFT=norm.bias is not None,
        )  # fmt: skip
        return out

    def unpack(self, weight: NF4Matrix) -> Tensor:
        """A packed matrix in the compute type; callers keep what they unpack small."""
        out = torch.empty(weight.shape, dtype=self.compute, device=weight.packed.device)
        count = weight.packed.numel()
        linear.unpack_kernel[(triton.cdiv(count, 1024),)](
            weight.packed, weight.absmax, self._codes, out, count, BYTES=1024
        )
        return out

    def scores(
        self, x: Tensor, norm: Norm, rows: Tensor, normed: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """norm(x) [T, K] in a type, and the router's products with it float32 [T, N]."""
        tokens, width = x.shape
        out, scores = torch.empty_like(x, dtype=normed), self._floats(tokens, rows.shape[0])

        def run(cut: Cut) -> None:
            routing.scores_kernel[triton.cdiv(rows.shape[0], cut.rows), tokens](
                x, *_norm(norm, x), rows, out, scores, N=rows.shape[0], K=width,
                WIDTH=triton.next_power_of_2(width), CENTRED=norm.centred,
                SHIFT=norm.bias is not None, ROWS=cut.rows, GROUPS=cut.groups, **cut.launch,
            )  # fmt: skip

        run(self.cut("scores", (rows.shape[0], width), 1, run))
        return out, scores

    def route(self, scores: Tensor, router: Router, efforts: Tensor) -> tuple[Tensor, Tensor]:
        """ids int32 and factors float32, each [T, k]; slots from a token's effort on are empty."""
        ids, factors = self._slots(scores.shape[0], router.experts_per_token)
        routing.route_kernel[(scores.shape[0],)](
            scores, efforts, router.jitter, ids, factors, scores.shape[1], **_choice(router)
        )
        return ids, factors

    def experts(
        self,
        x: Tensor,
        scores: Tensor,
        router: Router,
        efforts: Tensor,
        gate_up: Matrix,
        down: Matrix,
        residual: Tensor,
    ) -> Tensor:
        """residual + the experts of normed x float32 [T, K], routed and computed pair by pair."""
        slots = self._slots(x.shape[0], router.experts_per_token)
        routed = _choice(router), (scores, efforts, router.jitter)
        return self._pairs(x, slots, routed, gate_up, down, residual)

    def pairs(
        self,
        x: Tensor,
        slots: tuple[Tensor, Tensor],
        gate_up: Matrix,
        down: Matrix,
        residual: Tensor,
    ) -> Tensor:
        """The same for ids int32 and factors float32 [T, k] that are known."""
        given = {"SLOTS": slots[0].shape[1], "ROUTER": "given", "E": 1, "EXPERTS": 1}
        routed = given | {"RENORMALISE": False}, (slots[1], slots[0], 0.0)
        return self._pairs(x, slots, routed, gate_up, down, residual)

    def _pairs(
        self,
        x: Tensor,
        slots: tuple[Tensor, Tensor],
        routed: tuple[dict[str, Any], tuple[Tensor, Tensor, float]],
        gate_up: Matrix,
        down: Matrix,
        residual: Tensor,
    ) -> Tensor:
        (ids, factors), (choice, (scores, efforts, jitter)) = slots, routed
        tokens, count = ids.shape
        wide, size, hidden = gate_up.shape[1], down.shape[2], x.shape[1]
        assert wide == 2 * size, "a stack of gate and up, and of down, do not fit"
        active, out = self._floats(tokens, count, size), torch.empty_like(residual)
        first, second = self._weights(gate_up), self._weights(down)

        def activate(cut: Cut) -> None:
            expert_kernels.gate_up_kernel[triton.cdiv(size, cut.rows), tokens * count](
                x, scores, efforts, jitter, ids, factors, *first[:2], self._codes, active,
                scores.shape[1], F=size, K=hidden, PACKED=first[2], **choice,
                ROWS=cut.rows, GROUPS=cut.groups, **cut.launch,
            )  # fmt: skip

        def add(cut: Cut) -> None:
            expert_kernels.down_kernel[triton.cdiv(hidden, cut.rows), tokens](
                active, ids, factors, *second[:2], self._codes, residual, out, hidden,
                K=size, SLOTS=count, PACKED=second[2], ROWS=cut.rows, GROUPS=cut.groups,
                **cut.launch,
            )  # fmt: skip

        activate(self.cut("gate_up", (size, hidden, count, first[2]), 1, activate))
        add(self.cut("down", (hidden, size, count, second[2]), 1, add))
        return out

    def sort(self, ids: Tensor, experts: int, tokens: int) -> Sorted:
        """ids int32 [T, k] by expert, in tiles of `tokens` pairs of one expert each."""
        pairs = ids.numel()
        assert pairs <= SORTED_MAX, "more pairs than are sorted at once"
        blocks = triton.cdiv(pairs, PAIRS)
        tiles = min(pairs, triton.cdiv(pairs, tokens) + experts)
        counts = torch.empty((blocks, experts), dtype=torch.int32, device=ids.device)
        order = torch.full((tiles * tokens,), -1, dtype=torch.int32, device=ids.device)
        owners = torch.empty((tiles,), dtype=torch.int32, device=ids.device)
        wide = {"E": experts, "EXPERTS": triton.next_power_of_2(experts), "PAIRS": PAIRS}
        routing.count_kernel[(blocks,)](ids, counts, pairs, **wide)
        routing.order_kernel[(blocks,)](
            ids, counts, order, owners, pairs, blocks, tiles, **wide, TOKENS=tokens,
            BLOCKS=_least(blocks, BLOCKS), TILES=_least(tiles, TILES), num_warps=8,
        )  # fmt: skip
        return Sorted(order, owners, tokens)

    def grouped(
        self,
        x: Tensor,
        slots: tuple[Tensor, Tensor],
        gate_up: Matrix,
        down: Matrix,
        residual: Tensor,
    ) -> Tensor:
        """residual + the experts of normed x [T, K] of the compute type, on tensor cores."""
        ids, factors = slots
        count, size, hidden, pairs = ids.shape[1], down.shape[2], x.shape[1], ids.numel()
        tiles = self.sort(ids, down.shape[0], token_tile(pairs // down.shape[0]))
        active = torch.empty((pairs, size), dtype=self.compute, device=x.device)
        products, out = self._floats(pairs, hidden), torch.empty_like(residual)
        first, second = self._weights(gate_up), self._weights(down)
        common: dict[str, Any] = {"COMPUTE": COMPUTE[self.compute], "TOKENS": tiles.tokens}

        def activate(cut: Cut) -> None:
            grouped.grouped_gate_up_kernel[tiles.experts.shape[0], triton.cdiv(size, cut.rows)](
                x, tiles.order, tiles.experts, *first[:2], self._codes, active,
                F=size, K=hidden, SLOTS=count, PACKED=first[2], **common,
                ROWS=cut.rows, GROUPS=cut.groups, **cut.launch,
            )  # fmt: skip

        def multiply(cut: Cut) -> None:
            grouped.grouped_down_kernel[tiles.experts.shape[0], triton.cdiv(hidden, cut.rows)](
                active, tiles.order, tiles.experts, factors, *second[:2], self._codes, products,
                H=hidden, K=size, PACKED=second[2], **common,
                ROWS=cut.rows, GROUPS=cut.groups, **cut.launch,
            )  # fmt: skip

        shape = (size, hidden, first[2])
        activate(self.cut("grouped_gate_up", shape, tiles.tokens, activate))
        multiply(self.cut("grouped_down", shape, tiles.tokens, multiply))
        grouped.combine_kernel[x.shape[0], triton.cdiv(hidden, 1024)](
            products, ids, residual, out, hidden, SLOTS=count, BLOCK=1024
        )
        return out

    def cut(self, kernel: str, shape: tuple[int, ...], tokens: int, run: Run) -> Cut:
        """The cut of a kernel: one that is best in bfloat16 may not fit in float32."""
        return self.tuning.cut(kernel, (*shape, self.compute.itemsize), tokens, run)

    def _slots(self, tokens: int, count: int) -> tuple[Tensor, Tensor]:
        ids = torch.empty((tokens, count), dtype=torch.int32, device=self.device)
        return ids, self._floats(tokens, count)

    def _floats(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self.device)

    def _weights(self, matrix: Matrix) -> tuple[Tensor, Tensor, bool]:
        """A matrix or stack as the kernels take it: weights, scales, whether they are packed."""
        if isinstance(matrix, NF4Matrix):
            return matrix.packed, matrix.absmax, True
        return matrix, self._codes, False


def _least(count: int, sizes: tuple[int, ...]) -> int:
    """The first size that is enough."""
    return next(size for size in sizes if size >= count)


def token_tile(tokens: int) -> int:
    """Tokens of a program on tensor cores, for so many tokens."""
    return 16 if tokens <= FEW else 64


def _norm(norm: Norm | None, unused: Tensor) -> tuple[Tensor, Tensor, float]:
    if norm is None:
        return unused, unused, 0.0
    return norm.weight, _or(norm.bias, unused), norm.eps


def _or(tensor: Tensor | None, unused: Tensor) -> Tensor:
    """What is not there is not read, but a pointer must be."""
    return unused if tensor is None else tensor


def _choice(router: Router) -> dict[str, Any]:
    experts = router.weight.shape[0]
    return {
        "E": experts, "EXPERTS": triton.next_power_of_2(experts), "ROUTER": router.kind,
        "SLOTS": router.experts_per_token,
        "RENORMALISE": router.renormalise and router.kind == "softmax",
    }  # fmt: skip
