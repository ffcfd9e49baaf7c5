"""Linear, norm and rotary against torch written out."""

from __future__ import annotations

import torch

from novamesh_engine.kernels.reference import KERNELS
from novamesh_engine.models.layers import Linear, RMSNorm, Rotary
from novamesh_engine.quant.codebook import NF4Matrix, dequantize
from support.tiny_moe import relative


def test_linear_is_the_same_packed_and_plain() -> None:
    rng = torch.Generator().manual_seed(1)
    x = torch.randn((3, 128), generator=rng)
    packed = torch.randint(0, 256, (10, 64), generator=rng, dtype=torch.uint8)
    matrix = NF4Matrix(packed, torch.rand((10, 2), generator=rng).half())
    plain = dequantize(matrix)
    assert relative(Linear(matrix, KERNELS)(x), x @ plain.T) < 1e-6
    assert relative(Linear(plain, KERNELS)(x), x @ plain.T) < 1e-6


def test_norm_makes_rows_of_one_size() -> None:
    x = torch.randn((4, 32), generator=torch.Generator().manual_seed(2)) * 100
    found = RMSNorm(torch.full((32,), 2.0), 1e-5, KERNELS)(x)
    assert torch.allclose(found.square().mean(-1), torch.full((4,), 4.0))


def test_angles_are_position_times_frequency() -> None:
    rotary = Rotary.create(8, 1e4, "cpu")
    wanted = torch.tensor([1.0, 0.1, 0.01, 0.001])
    assert torch.allclose(rotary.frequencies, wanted)
    cos, sin = rotary.angles(torch.tensor([0, 3]))
    assert torch.equal(cos[0], torch.ones(4))
    assert torch.allclose(sin[1], (3 * wanted).sin())
