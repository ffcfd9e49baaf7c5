"""The engine as a whole on tiny models: batching, endings, refusals, times, books."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from novamesh_engine.engine import Engine
from novamesh_engine.errors import IntegrityError, NoNumbersError, QueueFullError, RequestError
from novamesh_engine.quant.convert import convert
from novamesh_engine.request import FinishReason, Request, SamplingParams, Timing
from novamesh_engine.tokenizer import Tokenizer
from novamesh_proto.errors import Code, NovaMeshError
from support.tiny_engine import (
    Answer,
    TickingClock,
    load_exact,
    run_dry,
    save_tiny,
    scripted_engine,
)
from support.tiny_moe import save_mixtral
from support.tiny_tokenizer import BOS, EOS, tiny_tokenizer, write_tokenizer
from support.watched import watched

PROMPTS = ((5, 6, 7), tuple(range(10, 60)), (9,), tuple(range(100, 117)))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def sampled(index: int, **params: object) -> SamplingParams:
    values = {"max_tokens": 12, "temperature": 0.8, "seed": bytes([index] * 32), "top_p": 0.95}
    return SamplingParams(**{**values, **params})  # type: ignore[arg-type]


def requests(greedy: bool) -> list[Request]:
    return [
        Request(str(i), prompt, SamplingParams(max_tokens=12) if greedy else sampled(i))
        for i, prompt in enumerate(PROMPTS)
    ]


@pytest.mark.parametrize("greedy", [True, False])
def test_company_changes_no_answer(folder: Path, greedy: bool) -> None:
    alone = load_exact(folder)
    wanted = {one.id: run_dry(alone, one)[one.id].tokens for one in requests(greedy)}
    together = run_dry(load_exact(folder), *requests(greedy))
    assert {id_: answer.tokens for id_, answer in together.items()} == wanted
    assert all(wanted.values())


def test_chunks_and_preemption_change_no_answer(folder: Path) -> None:
    wanted = run_dry(load_exact(folder), *requests(False))
    chunked = load_exact(folder, max_step_tokens=8, block_size=3)
    assert _tokens(run_dry(chunked, *requests(False))) == _tokens(wanted)
    slot = 2 * 2 * 2 * 16 * 4  # k and v, layers, kv heads, head_dim, bytes
    crowded = load_exact(folder, kv_bytes_max=20 * 4 * slot, block_size=4)
    assert _tokens(run_dry(crowded, *requests(False))) == _tokens(wanted)
    assert crowded.stats().preemptions > 0


def _tokens(answers: dict[str, Answer]) -> dict[str, tuple[int, ...]]:
    return {id_: answer.tokens for id_, answer in answers.items()}


def test_greedy_is_what_transformers_generates(tmp_path: Path) -> None:
    oracle = save_mixtral(tmp_path)
    write_tokenizer(tmp_path)
    engine = load_exact(tmp_path)
    prompt = (3, 14, 15, 92, 65, 35)
    sampling = SamplingParams(max_tokens=20, ignore_eos=True)
    answer = run_dry(engine, Request("a", prompt, sampling))["a"]
    inputs = torch.tensor([prompt])
    wanted = oracle.generate(
        inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=20, min_new_tokens=20,
        do_sample=False, pad_token_id=0,
    )  # fmt: skip
    assert answer.tokens == tuple(wanted[0, len(prompt) :].tolist())


def test_a_seed_reproduces_and_another_differs(folder: Path) -> None:
    engine = load_exact(folder)
    one, same, other = (
        run_dry(engine, Request("a", PROMPTS[1], sampled(seed, temperature=1.5)))["a"].tokens
        for seed in (1, 1, 2)
    )
    assert one == same != other


def test_logprobs_are_the_models_own(tmp_path: Path) -> None:
    oracle = save_mixtral(tmp_path)
    write_tokenizer(tmp_path)
    engine = load_exact(tmp_path)
    sampling = SamplingParams(max_tokens=4, temperature=2.0, logprobs=3, ignore_eos=True)
    answer = run_dry(engine, Request("a", (3, 14, 15), sampling))["a"]
    with torch.no_grad():
        logits = oracle(torch.tensor([[3, 14, 15, *answer.tokens]])).logits[0]
    for index, output in enumerate(answer.outputs):
        row = torch.log_softmax(logits[2 + index], -1)
        (report,) = output.logprobs
        assert report.token_id == output.token_ids[0]
        assert report.logprob == pytest.approx(row[report.token_id].item(), abs=1e-4)
        best = torch.topk(row, 3)
        assert [id_ for id_, _ in report.top] == best.indices.tolist()
        assert [value for _, value in report.top] == pytest.approx(best.values.tolist(), abs=1e-4)


def spell(tokenizer: Tokenizer, text: str, start: int) -> dict[int, int]:
    """The script that says a text from a position on, byte by byte, and then ends."""
    single = {tokenizer.token_bytes(i): i for i in range(2, 260)}
    ids = [single[bytes([byte])] for byte in text.encode()]
    return dict(enumerate([*ids, EOS], start))


def test_text_is_whole_characters_up_to_the_models_end(tokenizer: Tokenizer) -> None:
    engine = scripted_engine(tokenizer, spell(tokenizer, "Zoë 🦊!", 2))
    answer = run_dry(engine, Request("a", (5, 6), SamplingParams()))["a"]
    assert [output.text for output in answer.outputs] == [
        "Z", "o", "", "ë", " ", "", "", "", "🦊", "!", "",
    ]  # fmt: skip
    assert answer.last.finish is FinishReason.STOP
    assert answer.tokens[-1] == EOS
    assert [output.position for output in answer.outputs] == list(range(1, 12))


def test_a_stop_string_ends_the_answer(tokenizer: Tokenizer) -> None:
    engine = scripted_engine(tokenizer, spell(tokenizer, "so it is. END of it", 1))
    answer = run_dry(engine, Request("a", (5,), SamplingParams(stop=(" END",))))["a"]
    assert answer.text == "so it is."
    assert answer.last.finish is FinishReason.STOP
    assert answer.last.position == len("so it is. END")


@pytest.mark.parametrize(("context", "most", "count"), [(256, 3, 3), (8, 100, 6)])
def test_length_and_context_end_an_answer(
    tokenizer: Tokenizer, context: int, most: int, count: int
) -> None:
    engine = scripted_engine(tokenizer, {}, max_context=context)
    answer = run_dry(engine, Request("a", (5, 6), SamplingParams(max_tokens=most)))["a"]
    assert (len(answer.tokens), answer.last.finish) == (count, FinishReason.LENGTH)


def test_logits_that_are_no_numbers_end_only_their_request(tokenizer: Tokenizer) -> None:
    engine = scripted_engine(tokenizer, {}, broken=[4])
    short, long = SamplingParams(max_tokens=5), SamplingParams(max_tokens=5, temperature=1.0)
    answers = run_dry(
        engine, Request("a", (5, 6), short), Request("b", (5,) * 9, short),
        Request("c", (5, 6), long),
    )  # fmt: skip
    assert answers["a"].last.finish is answers["c"].last.finish is FinishReason.ERROR
    assert isinstance(answers["a"].last.error, NoNumbersError)
    assert answers["b"].last.error is None
    assert (answers["a"].tokens, answers["a"].last.token_ids) == ((2, 2), ())
    assert answers["b"].last.finish is FinishReason.LENGTH


def test_a_step_that_raised_can_be_repeated(tokenizer: Tokenizer) -> None:
    faults = [RuntimeError("a kernel failed"), RuntimeError("a kernel failed")]
    engine = scripted_engine(tokenizer, spell(tokenizer, "ok", 2), faults=faults)
    engine.submit(Request("a", (5, 6), SamplingParams()))
    for _ in range(2):
        with pytest.raises(RuntimeError, match="a kernel failed"):
            engine.step()
        engine.check_integrity()
    assert run_dry(engine)["a"].text == "ok"


def test_abort_ends_a_running_and_a_waiting_request_once(tokenizer: Tokenizer) -> None:
    engine = scripted_engine(tokenizer, {}, max_running=1)
    for id_ in "ab":
        engine.submit(Request(id_, (5, 6), SamplingParams(max_tokens=50)))
    assert [output.request_id for output in engine.step()] == ["a"]
    assert engine.abort("a")
    assert engine.abort("b")
    assert not engine.abort("a")
    assert not engine.abort("nobody")
    engine.check_integrity()
    assert engine.has_work
    first, second = engine.step()
    assert first.finish is second.finish is FinishReason.ABORTED
    assert (first.position, second.position) == (1, 0)
    assert first.timing is not None
    assert second.timing is not None
    assert second.timing.queue_us == second.timing.total_us > 0
    assert not engine.has_work
    assert engine.stats().finished == 2


def test_a_long_prompt_is_given_up_within_a_step(tokenizer: Tokenizer) -> None:
    engine = scripted_engine(tokenizer, {}, max_step_tokens=16)
    engine.submit(Request("long", (5,) * 200, SamplingParams()))
    for _ in range(3):
        assert engine.step() == []
    assert engine.abort("long")
    engine.submit(Request("next", (5, 6), SamplingParams(max_tokens=2)))
    ended, first = engine.step()
    assert (ended.request_id, ended.finish) == ("long", FinishReason.ABORTED)
    assert (first.request_id, first.token_ids) == ("next", (2,))
    assert engine.stats().prefill_tokens == 3 * 16 + 2
    run_dry(engine)


def test_a_short_prompt_is_answered_while_a_long_one_is_read(tokenizer: Tokenizer) -> None:
    engine = scripted_engine(tokenizer, {}, max_step_tokens=16)
    engine.submit(Request("long", (5,) * 200, SamplingParams(max_tokens=1)))
    engine.step()
    engine.submit(Request("short", (5,) * 12, SamplingParams(max_tokens=3)))
    assert [[one.request_id for one in engine.step()] for _ in range(3)] == [["short"]] * 3
    assert [one.finish for one in run_dry(engine)["long"].outputs] == [FinishReason.LENGTH]


def test_where_the_time_went(tokenizer: Tokenizer) -> None:
    engine = scripted_engine(tokenizer, {})
    answer = run_dry(engine, Request("a", (5, 6), SamplingParams(max_tokens=3)))["a"]
    # The clock ticks 1 ms at each look: submitted 1; step 2, token 3; step 4, 5; step 6, 7.
    assert answer.last.timing == Timing(1000, 1000, 4000, 2000, 6000)
    assert [output.timing for output in answer.outputs[:-1]] == [None, None]


def test_a_full_queue_says_so(tokenizer: Tokenizer) -> None:
    engine = scripted_engine(tokenizer, {}, max_running=1, max_waiting=1)
    for id_ in "ab":
        engine.submit(Request(id_, (5,), SamplingParams(max_tokens=2)))
    with pytest.raises(QueueFullError):
        engine.submit(Request("c", (5,), SamplingParams()))
    engine.check_integrity()
    run_dry(engine)
    run_dry(engine, Request("c", (5,), SamplingParams(max_tokens=1)))


def test_endings_that_nobody_fetches_are_bounded(tokenizer: Tokenizer) -> None:
    engine = scripted_engine(tokenizer, {}, max_running=1, max_waiting=1)
    for id_ in "ab":
        engine.submit(Request(id_, (5,), SamplingParams()))
        engine.abort(id_)
    with pytest.raises(QueueFullError):
        engine.submit(Request("c", (5,), SamplingParams()))
    assert len(engine.step()) == 2


@pytest.mark.parametrize(
    ("request_", "code", "what"),
    [
        (Request("a", (5,), SamplingParams()), Code.CONFLICT, "already running"),
        (Request("b", (5,) * 256, SamplingParams()), Code.TOO_LARGE, "256 tokens, not under 256"),
        (Request("b", (384,), SamplingParams()), Code.BAD_REQUEST, "outside the model's 384"),
        (Request("b", (-1,), SamplingParams()), Code.BAD_REQUEST, "outside"),
        (Request("b", (5,), SamplingParams(), (999,)), Code.BAD_REQUEST, "outside"),
        (Request("b", (5,), SamplingParams(max_tokens=2), (2, 2, 2)), Code.BAD_REQUEST, "goes on"),
        (Request("b", (5,), SamplingParams(), (EOS, BOS)), Code.BAD_REQUEST, "goes on"),
    ],
)
def test_what_can_never_run_is_refused(
    tokenizer: Tokenizer, request_: Request, code: Code, what: str
) -> None:
    engine = scripted_engine(tokenizer, {})
    engine.submit(Request("a", (5,), SamplingParams(max_tokens=1)))
    with pytest.raises(RequestError, match=what) as refused:
        engine.submit(request_)
    assert refused.value.code is code
    engine.check_integrity()
    assert set(run_dry(engine)) == {"a"}


def test_a_prompt_longer_than_the_pool_is_refused(tokenizer: Tokenizer) -> None:
    engine = scripted_engine(tokenizer, {}, kv_bytes_max=16 * 12)
    assert engine.max_context == 12
    with pytest.raises(RequestError, match="not under 12"):
        engine.submit(Request("a", (5,) * 12, SamplingParams()))
    answer = run_dry(engine, Request("a", (5,) * 3, SamplingParams()))["a"]
    assert len(answer.tokens) == 9


def test_stats_count_what_was_done(tokenizer: Tokenizer) -> None:
    engine = scripted_engine(tokenizer, {}, max_step_tokens=8)
    run_dry(engine, Request("a", (5,) * 20, SamplingParams(max_tokens=3)))
    stats = engine.stats()
    assert (stats.steps, stats.prefill_tokens, stats.generated_tokens) == (5, 20, 3)
    assert (stats.waiting, stats.running, stats.finished) == (0, 0, 1)


def test_integrity_sees_a_request_that_only_one_side_knows(tokenizer: Tokenizer) -> None:
    engine = scripted_engine(tokenizer, {})
    engine.submit(Request("a", (5,), SamplingParams()))
    live = engine._live.copy()
    engine._live.clear()
    with pytest.raises(IntegrityError, match="different requests"):
        engine.check_integrity()
    engine._live |= live


def test_a_packed_profile_runs_under_its_own_digest(tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "plain", moe_intermediate_size=64)
    profile = convert(source, tmp_path / "packed", "tiny")
    (tmp_path / "packed" / "generation_config.json").write_text("not in the manifest, not read")
    engine = watched(Engine.load(tmp_path / "packed"))
    assert engine.profile == profile
    assert engine.digest == profile.digest
    assert Engine.load(source).digest == bytes(32)
    answers = run_dry(engine, *requests(False))
    assert all(answer.tokens for answer in answers.values())


def test_a_profile_that_was_touched_is_not_run(tmp_path: Path) -> None:
    convert(save_tiny(tmp_path / "plain"), tmp_path / "packed", "tiny")
    path = tmp_path / "packed" / "tokenizer.json"
    path.write_text(path.read_text().replace("</s>", "<!s>"))
    with pytest.raises(NovaMeshError, match=r"tokenizer\.json") as refused:
        Engine.load(tmp_path / "packed")
    assert refused.value.code is Code.CORRUPT


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(NovaMeshError, match="there is no model") as refused:
        Engine.load(tmp_path / "nothing")
    assert refused.value.code is Code.MODEL_NOT_FOUND


def test_a_benchmark_measures_and_leaves_nothing(folder: Path) -> None:
    engine = load_exact(folder)
    result = engine.benchmark(prompt_tokens=1000, decode_tokens=8, requests=2)
    assert result.load.prompt_tokens == engine.max_context - 8
    assert min(result.prefill_tokens_per_s, result.decode_tokens_per_s, result.ttft_ms) > 0
    assert not engine.has_work
    with pytest.raises(RequestError, match="9 requests do not run at once"):
        engine.benchmark(requests=9)


def test_the_default_clock_is_monotonic(folder: Path) -> None:
    answer = run_dry(load_exact(folder), Request("a", (5,), SamplingParams(max_tokens=2)))["a"]
    assert answer.last.timing is not None
    assert answer.last.timing.total_us > 0
    assert TickingClock()() > 0
