"""Muon and AdamW: matrices become orthogonal, both walk downhill, splits are lossless."""

from __future__ import annotations

import torch

from novamesh_engine.recipe.network import Network, training_loss
from novamesh_engine.recipe.optimizer import Optimizer, orthogonalize
from novamesh_engine.recipe.preset import PRESETS

SMOKE = PRESETS["smoke"]


def test_orthogonalized_matrices_have_like_singular_values() -> None:
    stack = torch.randn(3, 16, 32, generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(orthogonalize(stack))
    assert float(values.min()) > 0.6
    assert float(values.max()) < 1.3


def test_the_loss_falls_on_one_batch() -> None:
    torch.manual_seed(0)
    network = Network(SMOKE)
    optimizer = Optimizer(network, SMOKE)
    ids = torch.randint(0, SMOKE.vocab, (2, 33), generator=torch.Generator().manual_seed(2))
    losses = []
    for step in range(12):
        loss = training_loss(network, ids, torch.ones(2, 33))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step(step, 1.0)
        network.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.5


def test_every_parameter_is_trained_and_each_has_state() -> None:
    torch.manual_seed(0)
    network = Network(SMOKE)
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    optimizer = Optimizer(network, SMOKE)
    training_loss(network, torch.randint(0, SMOKE.vocab, (2, 17)), torch.ones(2, 17)).backward()  # type: ignore[no-untyped-call]
    optimizer.step(0, 1.0)
    for name, value in network.named_parameters():
        assert not torch.equal(value, before[name]), name
    assert {key.rsplit("/", 1)[0] for key in optimizer.state} == set(before)


def test_experts_are_orthogonalised_one_by_one() -> None:
    torch.manual_seed(0)
    network = Network(SMOKE)
    optimizer = Optimizer(network, SMOKE)
    training_loss(network, torch.randint(0, SMOKE.vocab, (4, 97)), torch.ones(4, 97)).backward()  # type: ignore[no-untyped-call]
    before = network.get_parameter("layers.0.down").detach().clone()
    optimizer.step(0, 1.0)
    after = network.get_parameter("layers.0.down").detach()
    decay = 1 - SMOKE.muon_rate * SMOKE.weight_decay
    change = (before * decay - after) / SMOKE.muon_rate
    for part in change.chunk(SMOKE.experts, dim=1):
        values = torch.linalg.svdvals(part)
        assert float(values.median()) > 0.5
        assert float(values.max()) < 1.3
