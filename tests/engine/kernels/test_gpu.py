"""The operations' host side: what they assume, how they cut, and what they leave as it was."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from novamesh_engine.kernels import gpu as module
from novamesh_engine.kernels import reference
from novamesh_engine.kernels.gpu import FEW, SORTED_MAX, Gpu, token_tile
from novamesh_engine.kernels.tuning import CUTS, Cut, Run, Tuning
from support.coarse_cuts import coarse_gpu
from support.random_layers import random, random_matrix, random_norm, random_router
from support.tiny_moe import relative

BOUND = 1e-5


class Asked(Tuning):
    """Remembers what it was asked, and answers with the coarsest cut."""

    def __init__(self) -> None:
        super().__init__()
        self.questions: list[tuple[str, tuple[int, ...], int]] = []
        self.runs: dict[str, Run] = {}

    def cut(self, kernel: str, shape: tuple[int, ...], tokens: int, run: Run) -> Cut:
        self.questions.append((kernel, shape, tokens))
        self.runs[kernel] = run
        return Cut(64, 1, 4)


def asked() -> tuple[Gpu, Asked]:
    tuning = Asked()
    return Gpu("cpu", torch.float32, tuning), tuning


def test_few_tokens_take_small_tiles() -> None:
    assert [token_tile(count) for count in (0, 1, FEW, FEW + 1, 5000)] == [16, 16, 16, 64, 64]


def test_every_question_to_the_tuning_has_an_answer() -> None:
    """Each kernel is asked for by a name and a tile that CUTS knows."""
    gpu, tuning = asked()
    x, norm, weight = random(1, 1, 64), random_norm(2, 64), random_matrix(3, 5, 64)
    gate_up, down = random_matrix(4, 1, 128, 64), random_matrix(5, 1, 64, 64)
    gpu.linear(x, weight, None, norm)
    gpu.scores(x, norm, random(6, 3, 64), torch.float32)
    slots = torch.zeros((1, 1), dtype=torch.int32), torch.ones(1, 1)
    gpu.pairs(x, slots, gate_up, down, x)
    for tokens in (1, FEW + 1):
        many = x.expand(tokens, -1).contiguous()
        spread = slots[0].expand(tokens, -1).contiguous(), torch.ones(tokens, 1)
        gpu.tiles(many, weight)
        gpu.grouped(many, spread, gate_up, down, many)
    kernels = {(kernel, tokens) for kernel, _, tokens in tuning.questions}
    assert kernels == CUTS.keys() - {("attend", 1)}


def test_a_cut_is_for_a_shape_and_not_for_a_count_of_tokens() -> None:
    gpu, tuning = asked()
    weight = random_matrix(3, 5, 64)
    for tokens in (1, 2):
        gpu.linear(random(1, tokens, 64), weight)
    gpu.linear(random(1, 1, 64), random_matrix(3, 5, 64, form="float32"))
    gpu.linear(random(1, 1, 64), random_matrix(3, 6, 64))
    shapes = [shape for _, shape, _ in tuning.questions]
    assert shapes[0] == shapes[1]
    assert len(set(shapes)) == 3  # the form and the rows are of the shape


@pytest.mark.parametrize("kernel", ["rows", "tile", "gate_up", "down", "grouped_down"])
def test_what_is_measured_can_be_repeated(kernel: str) -> None:
    """A run on its own with another cut leaves the same result where the first one did."""
    gpu, tuning = asked()
    x, residual = random(1, 2, 64), random(2, 2, 64)
    gate_up, down = random_matrix(3, 1, 128, 64), random_matrix(4, 1, 64, 64)
    slots = torch.zeros((2, 1), dtype=torch.int32), torch.ones(2, 1)
    found = {
        "rows": lambda: gpu.linear(x, down[0], None, None, residual),
        "tile": lambda: gpu.tiles(x, down[0], None, residual),
        "gate_up": lambda: gpu.pairs(x, slots, gate_up, down, residual),
        "down": lambda: gpu.pairs(x, slots, gate_up, down, residual),
        "grouped_down": lambda: gpu.grouped(x, slots, gate_up, down, residual),
    }[kernel]()
    first = found.clone()
    tuning.runs[kernel](Cut(16, 2, 4))
    assert relative(found, first) < BOUND


def test_nothing_writes_to_what_it_reads() -> None:
    gpu = coarse_gpu()
    x, norm, residual = random(1, 2, 64), random_norm(2, 64), random(3, 2, 64)
    gate_up, down = random_matrix(4, 3, 128, 64), random_matrix(5, 3, 64, 64)
    router = random_router(6, "softmax", 3, 64, 2)
    scores, efforts = x @ router.weight.T, torch.full((2,), 2, dtype=torch.int32)
    ids, factors = gpu.route(scores, router, efforts)
    held: list[Tensor] = [x, residual, scores, efforts, ids, factors]
    before = [tensor.clone() for tensor in held]
    gpu.linear(x, down[0], None, norm, residual)
    gpu.tiles(x, down[0], None, residual)
    gpu.normalise(x, norm)
    gpu.scores(x, norm, router.weight, torch.float32)
    gpu.experts(x, scores, router, efforts, gate_up, down, residual)
    gpu.pairs(x, (ids, factors), gate_up, down, residual)
    gpu.grouped(x, (ids, factors), gate_up, down, residual)
    assert all(map(torch.equal, held, before))


def test_stacks_that_do_not_fit_are_a_bug_of_ours() -> None:
    x, slots = random(1, 1, 64), (torch.zeros((1, 1), dtype=torch.int32), torch.ones(1, 1))
    with pytest.raises(AssertionError, match="do not fit"):
        coarse_gpu().pairs(x, slots, random_matrix(2, 2, 64, 64), random_matrix(3, 2, 64, 64), x)


def test_more_pairs_than_are_sorted_at_once_are_a_bug_of_ours() -> None:
    ids = torch.zeros((SORTED_MAX // 2 + 1, 2), dtype=torch.int32)
    with pytest.raises(AssertionError, match="sorted at once"):
        coarse_gpu().sort(ids, 4, 16)


@pytest.mark.parametrize(("pairs", "experts", "tiles"), [(3, 60, 3), (40, 2, 5), (16, 1, 2)])
def test_tiles_are_as_many_as_any_choice_needs(pairs: int, experts: int, tiles: int) -> None:
    """No more than pairs, and beside the full ones a partial one for each expert."""
    ids = torch.arange(pairs, dtype=torch.int32)[:, None] % experts
    found = coarse_gpu().sort(ids, experts, 16)
    assert found.experts.shape == (tiles,)
    assert found.order.shape == (tiles * 16,)
    assert sorted(pair for pair in found.order.tolist() if pair >= 0) == list(range(pairs))


def test_the_largest_sort(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pairs fill every block; here the blocks are large, so that the interpreter has few."""
    monkeypatch.setattr(module, "PAIRS", SORTED_MAX // 2)
    rng = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 3, (SORTED_MAX, 1), generator=rng, dtype=torch.int32)
    found = coarse_gpu().sort(ids, 3, 64)
    wanted = torch.cat([tokens for _, tokens, _ in reference.dispatch(ids)])
    assert torch.equal(found.order[found.order >= 0].long(), wanted)


@pytest.mark.parametrize("compute", [torch.float32, torch.float16])
def test_types(compute: torch.dtype) -> None:
    """Results are float32 but for what the next product reads."""
    gpu, x, norm = coarse_gpu(compute), random(1, 2, 64), random_norm(2, 64)
    packed = random_matrix(3, 4, 64)
    assert gpu.linear(x, packed).dtype == torch.float32
    assert gpu.tiles(x.to(compute), packed).dtype == torch.float32
    assert gpu.normalise(x, norm).dtype == gpu.unpack(packed).dtype == compute  # type: ignore[arg-type]
    normed, scores = gpu.scores(x, norm, random(4, 3, 64), compute)
    assert (normed.dtype, scores.dtype) == (compute, torch.float32)
    router = random_router(5, "softmax", 3, 64, 2)
    ids, factors = gpu.route(scores, router, torch.full((2,), 2, dtype=torch.int32))
    assert (ids.dtype, factors.dtype) == (torch.int32, torch.float32)
