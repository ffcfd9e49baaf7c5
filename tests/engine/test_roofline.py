"""What a step must read, counted; how fast memory is, measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from novamesh_engine import roofline
from novamesh_engine.kernels.library import UnusableLibraryError
from novamesh_engine.models.decoder import Decoder
from novamesh_engine.models.moe import MoE
from novamesh_engine.quant.convert import convert
from novamesh_engine.roofline import measure_read, resident_bytes, step_bytes
from novamesh_engine.weights.load import load_model
from support.tiny_moe_families import CASES, make_checkpoint


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    folder = tmp_path_factory.mktemp("model")
    make_checkpoint(next(case for case in CASES if case.name == "qwen2_moe"), folder / "plain")
    convert(folder / "plain", folder / "packed", "tiny")
    return load_model(folder / "packed").decoder


def test_one_token_reads_its_experts_and_everything_else_once(decoder: Decoder) -> None:
    """NF4 takes half a byte a weight, and two bytes for 64 of them."""

    def packed(rows: int, width: int) -> int:
        return rows * width // 2 + rows * width // 64 * 2

    head = decoder.head.weight
    wanted = packed(*head.shape) + decoder.embedding.shape[1] * 2
    for layer in decoder.layers:
        for linear in (layer.attention.qkv, layer.attention.output):
            wanted += packed(*linear.weight.shape)
            wanted += 0 if linear.bias is None else linear.bias.nbytes
        mlp = layer.mlp
        share = 1.0
        if isinstance(mlp, MoE):
            share = mlp.router.experts_per_token / mlp.router.weight.shape[0]
            wanted += mlp.router.weight.nbytes
            if mlp.shared is not None:
                wanted += packed(*mlp.shared.gate_up.shape) + packed(*mlp.shared.down.shape)
                wanted += mlp.shared.gate.nbytes
        own = sum(
            packed(matrix.shape[-2] * (matrix.shape[0] if len(matrix.shape) == 3 else 1),
                   matrix.shape[-1])
            for matrix in (mlp.gate_up, mlp.down)
        )  # fmt: skip
        wanted += round(own * share)
    assert step_bytes(decoder) == wanted


def test_tokens_together_share_experts(decoder: Decoder) -> None:
    one, eight, many = (step_bytes(decoder, batch) for batch in (1, 8, 10_000))
    assert one < eight < 8 * one
    row = decoder.embedding[0].nbytes
    assert many - 10_000 * row < 2 * (eight - 8 * row)


def test_memory_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(threads: int) -> None:
        raise UnusableLibraryError("not built")

    monkeypatch.setattr(roofline, "READ_BYTES", 1 << 20)
    for _ in range(2):  # with the kernels, where there are some, and without
        assert measure_read(1) > 1_000_000
        assert measure_read(2) > 1_000_000
        monkeypatch.setattr(roofline, "open_native", refuse)


def test_a_process_holds_something() -> None:
    told = Path("/proc/self/status").exists()
    assert (resident_bytes() > 1_000_000) == told
