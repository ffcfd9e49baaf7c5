"""Linear and norm against torch written out."""

from __future__ import annotations

import pytest
import torch

from novamesh_engine.models.layers import Linear, Norm
from novamesh_engine.quant.codebook import NF4Matrix, dequantize
from support.tiny_moe import relative


@pytest.mark.parametrize("biased", [False, True])
def test_linear_is_the_same_packed_and_plain(biased: bool) -> None:
    rng = torch.Generator().manual_seed(1)
    x = torch.randn((3, 128), generator=rng)
    packed = torch.randint(0, 256, (10, 64), generator=rng, dtype=torch.uint8)
    matrix = NF4Matrix(packed, torch.rand((10, 2), generator=rng).half())
    bias = torch.randn(10, generator=rng) if biased else None
    plain = dequantize(matrix)
    wanted = torch.nn.functional.linear(x, plain, bias)
    assert relative(Linear(matrix, bias)(x), wanted) < 1e-6
    assert relative(Linear(plain, bias)(x), wanted) < 1e-6


def test_rms_norm_makes_rows_of_one_size() -> None:
    x = torch.randn((4, 32), generator=torch.Generator().manual_seed(2)) * 100
    found = Norm(torch.full((32,), 2.0), None, 1e-5, centred=False)(x)
    assert torch.allclose(found.square().mean(-1), torch.full((4,), 4.0))


def test_layer_norm_is_that_of_torch() -> None:
    rng = torch.Generator().manual_seed(3)
    x, weight, bias = (torch.randn(shape, generator=rng) for shape in ((4, 3, 32), 32, 32))
    found = Norm(weight, bias, 1e-5, centred=True)(x * 50 + 7)
    wanted = torch.nn.functional.layer_norm(x * 50 + 7, (32,), weight, bias, 1e-5)
    assert relative(found, wanted) < 1e-6
