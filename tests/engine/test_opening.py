"""A model opened on a card of any size gives the same answers; the CPU plays the card.

The device is called cpu:0, which torch takes for the CPU and the engine for a device; what is known
of it is made up. Kernels are interpreted, in float32.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from novamesh_engine import opening
from novamesh_engine.config import EngineConfig
from novamesh_engine.engine import Engine
from novamesh_engine.kernels import choice
from novamesh_engine.kernels.cards import Card
from novamesh_engine.opening import Opened, open_model, plan, settle
from novamesh_engine.quant.convert import convert
from novamesh_engine.request import Request, SamplingParams
from novamesh_engine.weights.footprint import Footprint
from novamesh_engine.weights.load import load_model
from novamesh_engine.weights.place import WORKSPACE_BYTES, WORKSPACE_EXPERTS
from support.tiny_engine import save_tiny
from support.tiny_moe import Part, PlainKV, make_batch, relative

CARD = Card("cuda", "A Card", (8, 6), triton=True, compiler=True, processors=4)
CONFIG = EngineConfig(
    device="cpu:0", precision="exact", kv_dtype="fp32", kv_bytes_max=1 << 20, max_running=2
)
NATIVE = bool(choice.look().runnable)
needs_native = pytest.mark.skipif(not NATIVE, reason="installed without a C++ compiler")


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small packed model with a tokenizer."""
    folder = tmp_path_factory.mktemp("opening")
    save_tiny(folder / "plain", hidden_size=64, moe_intermediate_size=64, num_hidden_layers=1)
    convert(folder / "plain", folder / "packed", "tiny")
    return folder / "packed"


@pytest.fixture(autouse=True)
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (opening, choice):
        monkeypatch.setattr(module, "look_at", lambda device: CARD)


def sizes(profile: Path) -> Footprint:
    return Footprint.of(load_model(profile).config)


def memory_for(model: Footprint, experts: int) -> int:
    """Bytes that hold the core, so many experts a layer, and the least cache."""
    least_kv = model.slot("fp32") * 512
    reserve = WORKSPACE_BYTES + WORKSPACE_EXPERTS * model.expert
    return reserve + model.core + experts * model.expert_row + least_kv


def opened(profile: Path, device_bytes: int) -> Opened:
    return open_model(profile, replace(CONFIG, device_bytes=device_bytes))


def test_a_large_card_holds_everything(profile: Path) -> None:
    found = opened(profile, 10**9)
    assert found.placement is not None
    assert (found.placement.mode, found.forward.name) == ("all", "triton-fp32")
    assert found.config.device == "cpu:0"
    assert found.config.kv_bytes_max == found.placement.kv_bytes <= CONFIG.kv_bytes_max


@needs_native
def test_a_small_card_holds_some_experts(profile: Path) -> None:
    found = opened(profile, memory_for(sizes(profile), 2))
    assert found.placement is not None
    assert (found.placement.mode, found.placement.experts_resident) == ("hot", 2)
    assert found.forward.name == "triton-fp32-tiered"


def test_a_card_that_is_too_small_leaves_it_to_the_cpu(profile: Path) -> None:
    found = opened(profile, 1000)
    assert found.placement is not None
    assert found.placement.mode == "none"
    assert found.config.device == "cpu"
    assert found.forward.name == choice.bind(found.model.decoder, precision="exact").name


def test_experts_stay_together_where_one_side_has_no_kernels(
    profile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "look_at", lambda device: replace(CARD, compiler=False))
    model = sizes(profile)
    config = replace(CONFIG, device_bytes=memory_for(model, 2))
    found = plan(model, 256, config)
    assert found.mode == "none"
    assert "Triton needs a C compiler" in found.reason
    assert settle(config, found).device == "cpu"


def test_an_unpacked_checkpoint_is_not_planned(profile: Path) -> None:
    found = open_model(profile.parent / "plain", CONFIG)
    assert found.placement is None
    assert found.forward.name == "triton-fp32"


@needs_native
@pytest.mark.parametrize("experts", [1, 99])
def test_logits_do_not_depend_on_where_weights_lie(profile: Path, experts: int) -> None:
    found = opened(profile, memory_for(sizes(profile), experts))
    config, tokens = found.model.config, [5, 9, 11, 30, 7]
    wanted, given = PlainKV(config), PlainKV(config)
    for parts in ([Part(0, 0, tokens[:3])], [Part(0, 3, tokens[3:4]), Part(1, 0, tokens[4:])]):
        definition = load_model(profile).decoder.forward(make_batch(wanted, parts), wanted)
        logits = found.forward.forward(make_batch(given, parts), given)
        assert relative(logits, definition) < 1e-5


@needs_native
@pytest.mark.parametrize("experts", [1, 99])
def test_answers_do_not_depend_on_where_weights_lie(profile: Path, experts: int) -> None:
    wanted = _answer(profile, replace(CONFIG, device="cpu"))
    memory = memory_for(sizes(profile), experts)
    assert _answer(profile, replace(CONFIG, device_bytes=memory)) == wanted


def _answer(profile: Path, config: EngineConfig) -> list[tuple[int, ...]]:
    engine = Engine.load(profile, config)
    for name, prompt in (("a", (5, 9)), ("b", (7,))):
        engine.submit(Request(name, prompt, SamplingParams(max_tokens=2, ignore_eos=True)))
    given: dict[str, tuple[int, ...]] = {"a": (), "b": ()}
    while engine.has_work:
        for output in engine.step():
            given[output.request_id] += output.token_ids
    return list(given.values())
