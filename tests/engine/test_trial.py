"""A model tried out: loaded, measured, and set beside what memory allows."""

from __future__ import annotations

from pathlib import Path

import pytest

from novamesh_engine import roofline
from novamesh_engine.benchmark import Load
from novamesh_engine.config import EngineConfig
from novamesh_engine.kernels import choice
from novamesh_engine.trial import check_device, examine
from novamesh_proto.errors import Code, NovaMeshError
from support.fake_cuda import Cuda
from support.tiny_engine import save_tiny


def test_what_was_asked_for_was_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "READ_BYTES", 1 << 20)
    config = EngineConfig(threads=1, kv_dtype="fp32", precision="exact")
    report = examine(save_tiny(tmp_path), config, Load(8, 4, 2))
    assert (report.plan.precision, report.plan.kv) == ("exact", "fp32")
    assert report.result.load == Load(8, 4, 2)
    assert report.result.decode_tokens_per_s > 0
    assert report.step_bytes > 0
    assert report.load_s > 0


def test_the_slow_path_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "READ_BYTES", 1 << 20)
    load, config = Load(2, 2, 1), EngineConfig(threads=1)
    fit = save_tiny(tmp_path / "fit", head_dim=32)
    narrow = save_tiny(tmp_path / "narrow", head_dim=16, num_attention_heads=2)
    if choice.look().runnable:
        assert not examine(fit, config, load).plan.why
        assert "torch.float32 (" in examine(narrow, config, load).plan.why
    monkeypatch.setenv(choice.ISA_VARIABLE, "avx9")
    told = examine(fit, config, load).plan
    assert (told.kernels, told.why) == ("torch", choice.look().why)


def test_a_missing_model_is_our_error(tmp_path: Path) -> None:
    with pytest.raises(NovaMeshError) as caught:
        examine(tmp_path, EngineConfig(), Load(8, 4, 1))
    assert caught.value.code is Code.MODEL_NOT_FOUND


def test_a_device_that_is_there_is_taken() -> None:
    two = Cuda(("GPU-1", "GPU-2"))
    check_device("cpu", Cuda())
    for name in ("cpu", "cuda", "cuda:0", "cuda:1"):
        check_device(name, two)


@pytest.mark.parametrize("name", ["cuda:2", "cuda:x", "cuda:-1", "cuda:", "gpu", "mps", "", "CPU"])
def test_a_device_that_is_not_there_is_refused_by_naming_those_that_are(name: str) -> None:
    with pytest.raises(NovaMeshError) as caught:
        check_device(name, Cuda(("GPU-1", "GPU-2")))
    assert caught.value.code is Code.BAD_REQUEST
    assert repr(name) in caught.value.message
    assert caught.value.hint == "it has cpu, cuda:0, cuda:1"
    with pytest.raises(NovaMeshError, match="no device 'cuda'"):
        check_device("cuda", Cuda())


def test_a_driver_that_fails_is_told_in_a_line() -> None:
    class Failing(Cuda):
        def device_count(self) -> int:
            raise RuntimeError("CUDA error: no luck\nmore for developers")

    with pytest.raises(NovaMeshError, match=r"CUDA error: no luck$"):
        check_device("cuda", Failing(("GPU-1",)))
