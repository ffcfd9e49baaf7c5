"""A whole step in Triton kernels equals the decoder's definition, in every family and kind of step.

The definition fills the cache, so that a few tokens meet windows and stretched contexts. Each row
of CASES runs a mixed step in one form and a lone token in the other; two rows run everything.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from torch import Tensor

from novamesh_engine.kernels import choice, gpu_forward
from novamesh_engine.kernels.gpu_forward import GpuForward
from novamesh_engine.kernels.tiers import TieredExperts
from novamesh_engine.models.batch import ForwardBatch
from novamesh_engine.models.moe import MoE
from novamesh_engine.quant.codebook import NF4Matrix
from novamesh_engine.quant.convert import convert
from novamesh_engine.weights.load import LoadedModel, load_model
from support.coarse_cuts import coarse_gpu
from support.replays import Replays
from support.tiny_moe import Part, PlainKV, make_batch
from support.tiny_moe_families import CASES, make_checkpoint, relative, tokens_of

BOUND, HALF_BOUND = 1e-5, 1e-2
FORMS = ("plain", "nf4")
CONTEXT, PROMPT = 51, 60  # beyond every window and what long contexts were stretched from
NAMES = [case.name for case in CASES]
# One layer is enough where all are alike; these have dense ones and windows among them.
DEEP = {"qwen2_moe": 3, "qwen2_moe-windows": 4, "qwen3_moe-yarn": 2}
TOKENS = tokens_of(3)


@cache
def folder() -> TemporaryDirectory[str]:
    """Where this file's checkpoints are made, once each."""
    return TemporaryDirectory(prefix="gpu-forward-")


def model(name: str, form: str, layers: int = 1) -> LoadedModel:
    return loaded(name, form, layers)


@cache
def loaded(name: str, form: str, layers: int) -> LoadedModel:
    path = Path(folder().name) / f"{name}-{layers}"
    if not path.exists():
        case = next(case for case in CASES if case.name == name)
        changes = {**case.changes, "num_hidden_layers": layers}
        make_checkpoint(replace(case, changes=changes), path)
    if form == "plain":
        return load_model(path)
    packed = path.with_suffix(".nf4")
    convert(path, packed, "tiny")
    return load_model(packed)


def forward_of(
    of: LoadedModel, compute: torch.dtype = torch.float32, recorder: Replays | None = None
) -> GpuForward:
    return GpuForward(of.decoder, coarse_gpu(compute), recorder=recorder)


def filled(of: LoadedModel) -> PlainKV:
    """A cache of eight sequences, as long as CONTEXT; what nobody wrote is no number."""
    kv = PlainKV(of.config, blocks=128, block_size=8)
    with torch.inference_mode():
        of.decoder.forward(
            make_batch(kv, [Part(row, 0, TOKENS[row : row + CONTEXT], PROMPT) for row in range(8)]),
            kv,
        )
    return kv


def copied(kv: PlainKV) -> PlainKV:
    other = replace(kv)
    other.stores = [(keys.clone(), values.clone()) for keys, values in kv.stores]
    return other


def lone(count: int, start: int = CONTEXT) -> list[Part]:
    """A token of each of so many sequences, no two alike, of lengths that differ."""
    return [Part(row, start - 3 * row, TOKENS[70 + row : 71 + row], PROMPT) for row in range(count)]


MIXED = [Part(0, CONTEXT, TOKENS[70:71], PROMPT), Part(1, CONTEXT - 4, TOKENS[80:82], PROMPT)]
PREFILL = [Part(2, 0, TOKENS[90:95], PROMPT)]


def distance(forward: GpuForward, of: LoadedModel, kv: PlainKV, parts: Sequence[Part]) -> float:
    """Of the logits, from the definition, or of the cache that a step leaves, if that is more."""
    ours, theirs = copied(kv), copied(kv)
    found = forward.forward(make_batch(ours, parts), ours)
    with torch.inference_mode():
        wanted = of.decoder.forward(make_batch(theirs, parts), theirs)
    assert found.dtype == torch.float32
    worst = relative(found, wanted)
    for mine, other in zip(ours.stores, theirs.stores, strict=True):
        for one, two in zip(mine, other, strict=True):
            assert torch.equal(one.isnan(), two.isnan())  # the same slots were written
            worst = max(worst, relative(one.nan_to_num(), two.nan_to_num()))
    return worst


@pytest.mark.parametrize("name", NAMES)
def test_a_mixed_step_of_every_family(name: str) -> None:
    """A lone token, and a chunk of a prompt; every other row is packed."""
    of = model(name, FORMS[NAMES.index(name) % 2], DEEP.get(name, 1))
    assert distance(forward_of(of), of, filled(of), MIXED) < BOUND


@pytest.mark.parametrize("name", NAMES)
def test_a_lone_token_of_every_family(name: str) -> None:
    """Packed are the rows that were not above."""
    of = model(name, FORMS[1 - NAMES.index(name) % 2], DEEP.get(name, 1))
    assert distance(forward_of(of), of, filled(of), lone(1)) < BOUND


STEPS = {"prefill": PREFILL, "mixed": MIXED} | {f"{n} lone": lone(n) for n in (1, 2, 4, 8)}
# Biases and GRIN's router; a shared expert.
WHOLE = [("phimoe", "plain"), ("qwen2_moe", "nf4")]


@pytest.mark.parametrize(("name", "form"), WHOLE)
@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS.keys())
def test_every_kind_of_step(step: list[Part], name: str, form: str) -> None:
    of = model(name, form)
    assert distance(forward_of(of), of, filled(of), step) < BOUND


@pytest.mark.parametrize("step", [PREFILL, lone(2)], ids=["prefill", "2 lone"])
def test_products_in_float16(step: list[Part]) -> None:
    of = model("qwen2_moe", "nf4")
    assert BOUND < distance(forward_of(of, torch.float16), of, filled(of), step) < HALF_BOUND


def test_padding_changes_nothing_and_writes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bucket as large as the step gives the same bits."""
    of, count = model("phimoe", "plain"), 3
    kv, forward = filled(of), forward_of(of)
    padded, exact = copied(kv), copied(kv)
    found = forward.forward(make_batch(padded, lone(count)), padded)
    monkeypatch.setattr(gpu_forward, "BUCKETS", (count,))
    assert torch.equal(found, forward.forward(make_batch(exact, lone(count)), exact))
    for one, other in zip(padded.stores, exact.stores, strict=True):
        assert all(
            torch.equal(*map(torch.nan_to_num, pair)) for pair in zip(one, other, strict=True)
        )


def test_more_lone_tokens_than_any_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_forward, "BUCKETS", (1, 2))
    of, recorder = model("qwen3_moe", "nf4"), Replays()
    assert distance(forward_of(of, recorder=recorder), of, filled(of), lone(3)) < BOUND
    assert recorder.recorded == []


def test_long_steps_unpack_their_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_forward, "UNPACK_TOKENS", 3)
    of = model("phimoe", "nf4")  # with biases
    assert distance(forward_of(of), of, filled(of), MIXED) < BOUND


def wanting(batch: ForwardBatch, rows: list[int]) -> ForwardBatch:
    return replace(batch, logit_rows=torch.tensor(rows))


@pytest.mark.parametrize(("parts", "rows"), [(lone(2), [1]), (MIXED, [0, 2])])
def test_only_the_wanted_logits_are_returned(parts: list[Part], rows: list[int]) -> None:
    of = model("qwen3_moe", "nf4")
    kv, forward = filled(of), forward_of(of)
    whole = forward.forward(make_batch(kv, parts), kv)
    some = forward.forward(wanting(make_batch(kv, parts), rows), kv)
    assert some.shape == (len(rows), 256)
    assert relative(some, whole[rows]) < 1e-6


def both(of: LoadedModel, recorder: Replays, steps: Sequence[ForwardBatch]) -> list[Tensor]:
    """The logits of a forward that replays; a step after another, on a cache of their own."""
    forward, plain = forward_of(of, recorder=recorder), forward_of(of)
    kv = filled(of)
    other = copied(kv)
    found = []
    for batch in steps:
        found.append(forward.forward(batch, kv).clone())
        assert torch.equal(found[-1], plain.forward(batch, other))
    return found


def narrow(batch: ForwardBatch, width: int) -> ForwardBatch:
    return replace(batch, block_tables=batch.block_tables[:, :width].contiguous())


def test_replays_give_what_launches_give() -> None:
    """One recording for each bucket and width of the tables, both powers of two."""
    of, recorder = model("qwen3_moe", "nf4"), Replays()
    layout = PlainKV(of.config, blocks=128, block_size=8)
    first, second = make_batch(layout, lone(1)), make_batch(layout, lone(1, CONTEXT + 1))
    found = both(of, recorder, [first, second, narrow(second, 7)])
    assert not torch.equal(found[0], found[1])
    assert recorder.recorded == [((1, 64), 5 + 16), ((1, 64), 5 + 8)]
    assert recorder.replayed == 3


def test_a_bucket_is_shared_by_all_that_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_forward, "BUCKETS", (2,))
    of, recorder = model("phimoe", "plain"), Replays()
    layout = PlainKV(of.config, blocks=128, block_size=8)
    both(of, recorder, [make_batch(layout, lone(2)), make_batch(layout, lone(1))])
    assert [shape for shape, _ in recorder.recorded] == [(2, 64)]


def test_recordings_are_of_one_cache() -> None:
    of, recorder = model("qwen3_moe", "nf4"), Replays()
    forward, kv = forward_of(of, recorder=recorder), filled(of)
    for used, count in ((kv, 1), (copied(kv), 2), (kv, 3)):
        forward.forward(make_batch(used, lone(1)), used)
        assert len(recorder.recorded) == count


def test_what_needs_the_host_is_not_recorded() -> None:
    """Angles that go by the longest sequence."""
    of, recorder = model("mixtral-dynamic", "plain"), Replays()
    assert distance(forward_of(of, recorder=recorder), of, filled(of), lone(1)) < BOUND
    assert recorder.recorded == []


@pytest.mark.skipif(not choice.look().runnable, reason="installed without a C++ compiler")
@pytest.mark.parametrize("step", [MIXED, lone(1)], ids=["mixed", "1 lone"])
def test_experts_on_two_sides(step: list[Part]) -> None:
    of, gpu, recorder = model("qwen2_moe", "nf4", 2), coarse_gpu(), Replays()
    native = choice.open_native(1, "exact", choice.look().runnable[-1])
    tiers = {}
    for at, layer in enumerate(of.decoder.layers):
        if isinstance(layer.mlp, MoE):
            stack = layer.mlp.gate_up, layer.mlp.down
            assert isinstance(stack[0], NF4Matrix)
            assert isinstance(stack[1], NF4Matrix)
            tiers[at] = TieredExperts(gpu, native, (stack[0], stack[1]), [1, 4])
    assert 0 < len(tiers) < len(of.decoder.layers)
    forward = GpuForward(of.decoder, gpu, 1, tiers, recorder)
    assert forward.name == "triton-fp32-tiered"
    assert distance(forward, of, filled(of), step) < BOUND
    assert recorder.recorded == []


def test_names_say_what_computes() -> None:
    of = model("qwen3_moe", "nf4")
    for compute, name, precision in (
        (torch.float32, "triton-fp32", "exact"),
        (torch.float16, "triton-fp16", "fp16"),
        (torch.bfloat16, "triton-bf16", "bf16"),
    ):
        forward = forward_of(of, compute)
        assert (forward.name, forward.precision, forward.why) == (name, precision, "")


@pytest.fixture(scope="module", autouse=True)
def cleaned() -> Iterator[None]:
    yield
    folder().cleanup()
