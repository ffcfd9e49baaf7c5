"""Experts on two sides sum to what the definition gives, whoever holds which. Both are the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from novamesh_engine.kernels import choice, reference, tiers
from novamesh_engine.kernels.native import Native
from novamesh_engine.kernels.tiers import STREAM_TOKENS, TieredExperts
from novamesh_engine.quant.codebook import NF4Matrix
from support.coarse_cuts import coarse_gpu
from support.random_layers import random, random_matrix
from support.tiny_moe import relative

SETS = choice.look().runnable
pytestmark = pytest.mark.skipif(not SETS, reason="installed without a C++ compiler")
BOUND, HALF_BOUND = 1e-5, 2e-3
EXPERTS, HIDDEN, SIZE = 5, 64, 64
Slots = tuple[Tensor, Tensor]


def stack() -> tuple[NF4Matrix, NF4Matrix]:
    gate_up = random_matrix(1, EXPERTS, 2 * SIZE, HIDDEN)
    down = random_matrix(2, EXPERTS, HIDDEN, SIZE)
    assert isinstance(gate_up, NF4Matrix)
    assert isinstance(down, NF4Matrix)
    return gate_up, down


@pytest.fixture(scope="module")
def native() -> Native:
    return choice.open_native(1, "exact", SETS[-1])


def tiered(
    native: Native, resident: Sequence[int], compute: torch.dtype = torch.float32
) -> TieredExperts:
    return TieredExperts(coarse_gpu(compute), native, stack(), resident)


def spread(tokens: int, seed: int = 3, low: int = 0) -> Slots:
    """Ids of two different experts a token, or of some slots none where `low` is -1."""
    rng = torch.Generator().manual_seed(seed)
    ids = torch.stack([torch.randperm(EXPERTS, generator=rng)[:2] for _ in range(tokens)])
    if low:
        ids[torch.rand(ids.shape, generator=rng) < 0.4] = low
    return ids.int(), random(seed + 1, tokens, 2).abs()


def off(experts: TieredExperts, slots: Slots) -> float:
    """The distance from the definition, of what is added; the input stays as it is."""
    tokens = slots[0].shape[0]
    x, residual = random(5, tokens, HIDDEN), random(6, tokens, HIDDEN)
    kept = [part.clone() for part in (*slots, x, residual)]
    found = experts(x, slots, residual)
    assert all(map(torch.equal, (*slots, x, residual), kept))
    return relative(found - residual, reference.experts(x, (slots[1], slots[0].long()), *stack()))


@pytest.mark.parametrize("resident", [[2], [4, 0], [1, 2, 3], [3, 0, 4, 1], [0, 1, 2, 3, 4]])
def test_any_may_be_resident(native: Native, resident: list[int]) -> None:
    """One, some, all, in any order."""
    experts = tiered(native, resident)
    assert experts.resident == tuple(sorted(resident))
    assert off(experts, spread(3)) < BOUND


@pytest.mark.parametrize("ids", [[[2, 2]], [[0, 1]], [[2, 0]]], ids=["hits", "misses", "both"])
def test_a_token_alone(native: Native, ids: list[list[int]]) -> None:
    slots = torch.tensor(ids, dtype=torch.int32), random(4, 1, 2)
    assert off(tiered(native, [2]), slots) < BOUND


def test_empty_slots_are_neither_hits_nor_misses(native: Native) -> None:
    experts = tiered(native, [0, 3])
    assert off(experts, spread(8, low=-1)) < BOUND
    counted = torch.bincount(spread(8, low=-1)[0].flatten().long() + 1, minlength=EXPERTS + 1)
    assert experts.counts == counted[1:].tolist()
    nothing = torch.full((2, 2), -1, dtype=torch.int32), torch.ones(2, 2)
    x = random(5, 2, HIDDEN)
    assert torch.equal(experts(x, nothing, x), x)


@pytest.mark.parametrize(
    ("compute", "bound"), [(torch.float32, BOUND), (torch.float16, HALF_BOUND)]
)
@pytest.mark.parametrize("resident", [[1], [0, 1, 2, 3, 4]])
def test_many_tokens_stream_what_is_missed(
    native: Native, resident: list[int], compute: torch.dtype, bound: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """More experts than there are buffers, and never by the CPU."""
    monkeypatch.setattr(tiers, "STREAM_TOKENS", 12)
    monkeypatch.setattr(Native, "experts", never)
    experts = tiered(native, resident, compute)
    for seed in (3, 9):  # the buffers are used again
        assert off(experts, spread(12, seed, low=-1)) < bound


def never(*_: object) -> Tensor:
    raise AssertionError("the CPU computes")


def test_how_many_tokens_stream(native: Native, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the stated number of tokens on, whichever they choose."""
    experts, chosen = tiered(native, [1]), torch.zeros((STREAM_TOKENS, 1), dtype=torch.int32)
    factors, x = torch.ones(STREAM_TOKENS, 1), random(5, STREAM_TOKENS, HIDDEN)
    monkeypatch.setattr(Native, "experts", never)
    wanted = reference.experts(x, (factors, chosen.long()), *stack())
    assert relative(experts(x, (chosen, factors), torch.zeros_like(x)), wanted) < BOUND
    with pytest.raises(AssertionError, match="the CPU computes"):
        experts(x[1:], (chosen[1:], factors[1:]), x[1:])


def test_streaming_one_by_one_takes_turns(native: Native, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two buffers, each filled before it is used and not again until it was."""
    events: list[tuple[str, int]] = []

    def told(name: str, real: Callable[..., None]) -> Callable[..., None]:
        def method(lane: object, buffer: int, *rest: object) -> None:
            events.append((name, buffer))
            real(lane, buffer, *rest)

        return method

    for name in ("copy", "used"):
        monkeypatch.setattr(tiers._Lane, name, told(name, getattr(tiers._Lane, name)))
    monkeypatch.setattr(tiers, "STREAM_TOKENS", 1)
    ids = torch.tensor([[0, 2], [4, 0]], dtype=torch.int32)
    assert off(tiered(native, [1, 3]), (ids, torch.ones(2, 2))) < BOUND
    turns = [0, 1, 0]  # experts 0, 2 and 4
    assert events == [(name, buffer) for buffer in turns for name in ("copy", "used")]


def test_residents_follow_use(native: Native, monkeypatch: pytest.MonkeyPatch) -> None:
    """One swap at a look, the sums stay what they are, and what nobody uses goes."""
    monkeypatch.setattr(tiers, "SWAP_STEPS", 2)
    experts = tiered(native, [0, 1])
    hot = torch.tensor([[3, 4]] * 10, dtype=torch.int32), torch.ones(10, 2)
    monkeypatch.setattr(tiers, "STREAM_TOKENS", 1)  # which is cheaper here
    residents = []
    for _ in range(4):
        assert off(experts, hot) < BOUND
        residents.append(experts.resident)
    assert residents[0] == (0, 1)
    assert residents[1] == residents[2] == (0, 3)
    assert residents[3] == (3, 4)
    monkeypatch.setattr(tiers, "STREAM_TOKENS", 64)
    assert off(experts, spread(3)) < BOUND  # hits and misses by the new tables


def test_counts_fade(native: Native, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiers, "SWAP_STEPS", 3)
    experts, x = tiered(native, [0, 1]), random(5, 1, HIDDEN)
    seen = []
    for _ in range(4):
        experts(x, (torch.tensor([[1, 0]], dtype=torch.int32), torch.ones(1, 2)), x)
        seen.append(experts.counts[:3])
    assert seen == [[1, 1, 0], [2, 2, 0], [1, 1, 0], [2, 2, 0]]


def test_few_uses_swap_nothing(native: Native, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiers, "SWAP_STEPS", 1)
    experts, x = tiered(native, [0, 1]), random(5, 1, HIDDEN)
    for _ in range(3):
        experts(x, (torch.tensor([[3, 4]], dtype=torch.int32), torch.ones(1, 2)), x)
    assert experts.resident == (0, 1)


def test_the_host_s_copy_is_never_written(native: Native, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resident that leaves is still where it was."""
    monkeypatch.setattr(tiers, "SWAP_STEPS", 1)
    monkeypatch.setattr(tiers, "STREAM_TOKENS", 1)
    host = stack()
    experts = TieredExperts(coarse_gpu(), native, host, [0, 1])
    slots = torch.tensor([[3, 4]] * 20, dtype=torch.int32), torch.ones(20, 2)
    experts(random(5, 20, HIDDEN), slots, random(6, 20, HIDDEN))
    assert experts.resident != (0, 1)
    for part, fresh in zip(host, stack(), strict=True):
        assert torch.equal(part.packed, fresh.packed)
        assert torch.equal(part.absmax, fresh.absmax)
