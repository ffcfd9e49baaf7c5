"""`engine bench` through the parser, and that importing the commands starts no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from novamesh.config import find_places
from novamesh_engine.cli import _kernels, app
from novamesh_proto.errors import Code, NovaMeshError
from support.tiny_engine import save_tiny

SMALL = ["--prompt-tokens", "8", "--decode-tokens", "4", "--threads", "1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"))


def run(*arguments: str) -> None:
    app(list(arguments), result_action="return_value")


def test_bench_prints_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("bench", str(folder), *SMALL, "--requests", "9", "--precision", "exact", "--json")
    values = json.loads(capsys.readouterr().out)
    assert (values["prompt_tokens"], values["decode_tokens"], values["requests"]) == (8, 4, 9)
    assert (values["precision"], values["kv"]) == ("exact", "bf16")
    assert values["model"] == str(folder)
    assert min(values["prefill_tokens_per_s"], values["decode_tokens_per_s"]) > 0
    assert values["roofline_tokens_per_s"] > 0


def test_bench_prints_lines(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("bench", str(folder), *SMALL, "--kv", "int8")
    lines = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert lines["model"] == str(folder)
    assert lines["plan"].endswith("KV int8")
    assert float(lines["decode"].split()[0]) > 0


def test_bench_of_a_device_that_is_not_there_is_a_mistake_of_the_asker() -> None:
    with pytest.raises(NovaMeshError, match="no device 'cuda:99'") as caught:
        run("bench", "--device", "cuda:99")
    assert caught.value.code is Code.BAD_REQUEST


def test_kernels_are_measured_once_for_bench_and_node(tmp_path: Path) -> None:
    env = {"NOVAMESH_HOME": str(tmp_path)}
    assert _kernels(env) == find_places(env=env).kernels
    assert _kernels({}) == find_places(env={}).kernels


def test_doctor_names_the_kernels(capsys: pytest.CaptureFixture[str]) -> None:
    assert app(["doctor", "--json"], result_action="return_value") == 0
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)}
    assert checks["kernels"]["status"] in ("ok", "warn")
    assert app(["doctor"], result_action="return_value") == 0
    assert "kernels" in capsys.readouterr().out


def test_a_missing_model_raises_our_error(tmp_path: Path) -> None:
    with pytest.raises(NovaMeshError, match="no model"):
        run("bench", str(tmp_path))


@pytest.mark.parametrize("name", ["~nosuchuser/x", "x" * 300])
def test_a_weird_name_raises_our_error(name: str) -> None:
    with pytest.raises(NovaMeshError, match="no model") as caught:
        run("bench", name)
    assert "novamesh models ls" in caught.value.hint


def test_importing_the_commands_starts_no_torch() -> None:
    code = "import sys, novamesh_engine.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
