"""The SDK against a pool with real signatures: answers, proofs, refusals, retries, leaving."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from novamesh import Client, Code, NovaMeshError, retries
from novamesh.client import parse_job
from novamesh.config import find_places, save_pool
from novamesh.receipts import verify_file
from novamesh_proto.join_code import format_join_code
from novamesh_proto.messages import FinishReason, JobState
from support.fake_answer import OTHER_PICO, PICO, Script
from support.fake_pool import FakePool

ANSWER = "Two plus three is five."


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "sleep", lambda _: asyncio.sleep(0))


@contextlib.contextmanager
def _pool(home: Path, script: Script | None = None) -> Iterator[FakePool]:
    with FakePool(script) as pool:
        save_pool(find_places(home), pool.entry)
        yield pool


def _left_over(home: Path) -> list[str]:
    return [path.name for path in (home / "jobs").glob("*")]


async def _refusal(home: Path, script: Script, **asked: float) -> NovaMeshError:
    with _pool(home, script):
        async with Client(home=home) as client:
            with pytest.raises(NovaMeshError) as caught:
                await client.complete("nova-pico", "2+3?", **asked)  # type: ignore[arg-type]
    return caught.value


async def test_answer_streams_and_its_receipt_verifies_offline(tmp_path: Path) -> None:
    with _pool(tmp_path) as pool:
        async with Client(home=tmp_path) as client:
            run = client.run("nova-pico", "2+3?", seed=7, logprobs=1)
            pieces = [piece async for piece in run]
            done = await run.completion()
    assert [piece.text for piece in pieces] == ["Two ", "plus ", "three ", "is ", "five."]
    assert pieces[-1].finish is FinishReason.STOP
    assert all(len(piece.logprobs) == 1 for piece in pieces)
    assert (done.text, done.token_ids, done.prompt_tokens) == (ANSWER, (0, 1, 2, 3, 4), 12)
    assert done.model_profile == PICO
    assert 0 < done.ttft_s <= done.total_s
    assert done.node in {node.node_id for node in pool.nodes}
    verified = verify_file(done.receipt_path, pool.key.node_id)
    assert verified.job == done.job
    assert verified.completion_tokens == done.completion_tokens == 5
    assert sorted(ack.chunks for ack in pool.acks) == [2, 4]
    assert len({ack.challenge for ack in pool.acks}) == 2
    assert pool.receipts[0].completion_tokens == 5
    assert _left_over(tmp_path) == []
    assert done.receipt_path.stat().st_mode & 0o777 == 0o600


async def test_body_says_what_was_asked(tmp_path: Path) -> None:
    with _pool(tmp_path) as pool:
        async with Client(home=tmp_path) as client:
            await client.complete("nova-pico", "hi", system="be brief", stop="END", seed=7)
            await client.complete("nova-pico", messages=[{"role": "user", "content": "hi"}], seed=7)
            await client.complete("nova-pico", text="Once")
            await client.complete("nova-pico", token_ids=[1, 2])
    chat, messages, text, tokens = pool.bodies
    assert chat.chat is not None
    assert [turn.role for turn in chat.chat.messages] == ["system", "user"]
    assert chat.stop == ("END",)
    assert messages.chat is not None
    assert chat.client_seed == messages.client_seed != text.client_seed
    assert text.text == "Once"
    assert tokens.tokens is not None
    assert len({body.response_key for body in pool.bodies}) == 4
    terms = [job.terms.message for job in pool.jobs.values()]
    assert all((t.start_position, t.parent_job, t.prefix_digest) == (0, b"", b"") for t in terms)


async def test_many_answers_at_once(tmp_path: Path) -> None:
    with _pool(tmp_path) as pool:
        async with Client(home=tmp_path) as client, asyncio.TaskGroup() as group:
            asked = [
                group.create_task(client.complete("nova-pico", f"question {n}")) for n in range(20)
            ]
    assert {task.result().text for task in asked} == {ANSWER}
    assert len({task.result().receipt_path for task in asked}) == len(pool.jobs) == 20
    assert len(pool.receipts) == 20


async def test_member_by_join_code_alone(tmp_path: Path) -> None:
    with FakePool() as pool:
        async with Client(home=tmp_path, join=format_join_code(pool.join_code)) as client:
            assert (await client.join()).issuer == pool.key.node_id
            assert [model.name for model in await client.models()] == ["nova-pico"]
    assert not (tmp_path / "config.toml").exists()


async def test_ambiguous_name_lists_the_digests(tmp_path: Path) -> None:
    script = Script(models=(("nova-pico", PICO), ("nova-pico", OTHER_PICO)))
    error = await _refusal(tmp_path, script)
    assert error.code is Code.CONFLICT
    assert f"nova-pico@{PICO.hex()[:12]}" in error.hint
    with _pool(tmp_path, script):
        async with Client(home=tmp_path) as client:
            done = await client.complete(f"nova-pico@{OTHER_PICO.hex()[:8]}", "hi")
    assert done.model_profile == OTHER_PICO


async def test_what_cannot_heal_is_not_asked_again(tmp_path: Path) -> None:
    refusal = NovaMeshError(Code.NO_CAPACITY, "no node takes 9000 tokens", "shorten the prompt")
    with _pool(tmp_path, Script(refusals={"Match": [refusal]})) as pool:
        async with Client(home=tmp_path) as client:
            with pytest.raises(NovaMeshError, match="9000") as caught:
                await client.complete("nova-pico", "hi")
    assert caught.value.hint == "shorten the prompt"
    assert pool.calls["Match"] == 1
    assert pool.calls["Submit"] == 0


async def test_what_can_heal_is_asked_again_as_the_same_job(tmp_path: Path) -> None:
    busy = NovaMeshError(Code.BUSY, "no node is free", "try again", retry_after_ms=1)
    lost = NovaMeshError(Code.STORAGE, "the disk is slow")
    script = Script(refusals={"Match": [busy], "Submit": [lost], "ListModels": [busy]})
    with _pool(tmp_path, script) as pool:
        async with Client(home=tmp_path) as client:
            assert (await client.complete("nova-pico", "hi")).text == ANSWER
    assert pool.calls["Submit"] == 2
    assert len(pool.jobs) == 1


async def test_burst_waits_for_its_turn(tmp_path: Path) -> None:
    """More jobs than slots: whoever finds the pool full asks again until its own deadline."""
    busy = [NovaMeshError(Code.BUSY, "no node is free", retry_after_ms=1) for _ in range(40)]
    with _pool(tmp_path, Script(refusals={"Match": busy})) as pool:
        async with Client(home=tmp_path) as client:
            asked = [client.complete("nova-pico", f"question {n}") for n in range(4)]
            answers = await asyncio.gather(*asked)
    assert {done.text for done in answers} == {ANSWER}
    assert pool.calls["Match"] == 44


@pytest.mark.parametrize("code", [Code.BUSY, Code.FORBIDDEN])
async def test_job_that_was_not_taken_leaves_no_record(tmp_path: Path, code: Code) -> None:
    refusals = [NovaMeshError(code, "not you", retry_after_ms=60_000) for _ in range(9)]
    error = await _refusal(tmp_path, Script(refusals={"Submit": refusals}), deadline_s=4)
    assert error.code is code
    assert _left_over(tmp_path) == []


async def test_broken_stream_is_taken_up_where_it_broke(tmp_path: Path) -> None:
    with _pool(tmp_path, Script(break_after=[0, 2, 4])) as pool:
        async with Client(home=tmp_path) as client:
            pieces = [piece.text async for piece in client.run("nova-pico", "hi")]
    assert "".join(pieces) == ANSWER
    assert pool.calls["Watch"] == 4


async def test_second_attempt_starts_a_new_chain(tmp_path: Path) -> None:
    with _pool(tmp_path, Script(lost_attempts=1)) as pool:
        async with Client(home=tmp_path) as client:
            done = await client.complete("nova-pico", "hi")
    assert done.text == ANSWER
    verified = verify_file(done.receipt_path, pool.key.node_id)
    assert verified.assignment.message.attempt == 2


async def test_lost_job_is_run_again_if_nothing_was_delivered(tmp_path: Path) -> None:
    lost = NovaMeshError(Code.NODE_LOST, "the node went away")
    with _pool(tmp_path, Script(failures=[lost])) as pool:
        async with Client(home=tmp_path) as client:
            assert (await client.complete("nova-pico", "hi")).text == ANSWER
    assert len(pool.jobs) == 2
    assert len({body.response_key for body in pool.bodies}) == 2


async def test_failed_job_says_why(tmp_path: Path) -> None:
    error = await _refusal(
        tmp_path, Script(failures=[NovaMeshError(Code.POLICY, "this node does not do that")])
    )
    assert (error.code, error.message) == (Code.POLICY, "this node does not do that")
    assert _left_over(tmp_path) == []


@pytest.mark.parametrize(
    ("tampered", "message"),
    [
        ("chunk", "chunk 2 was changed"),
        ("checkpoint", "checkpoint of an answer it did not send"),
        ("attestation", "attests another answer"),
        ("assignment", "JobAssignment is signed by"),
        ("settlement", "Settlement is signed by"),
    ],
)
async def test_whoever_cheats_is_named(tmp_path: Path, tampered: str, message: str) -> None:
    error = await _refusal(tmp_path, Script(tampered=tampered))
    assert message in error.message
    assert _left_over(tmp_path) == []
    assert not list((tmp_path / "receipts").glob("*"))


async def test_leaving_the_loop_cancels_the_job(tmp_path: Path) -> None:
    with _pool(tmp_path, Script(hang_after=2)) as pool:
        async with Client(home=tmp_path) as client:
            async for piece in client.run("nova-pico", "hi"):
                assert piece.text
                break
        (job,) = pool.jobs.values()
        assert job.view.state is JobState.CANCELLED
    assert _left_over(tmp_path) == []


async def test_cancelled_task_cancels_the_job(tmp_path: Path) -> None:
    with _pool(tmp_path, Script(hang_after=0)) as pool:
        async with Client(home=tmp_path) as client:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await client.complete("nova-pico", "hi")
            assert pool.calls["Cancel"] == 1


async def test_answer_left_unread_has_no_completion(tmp_path: Path) -> None:
    with _pool(tmp_path, Script(hang_after=1)) as pool:
        async with Client(home=tmp_path) as client:
            run = client.run("nova-pico", "hi")
            async for _ in run:
                break
            with pytest.raises(NovaMeshError, match="cancelled") as caught:
                await run.completion()
            assert caught.value.code is Code.CANCELLED
        assert pool.calls["Cancel"] == 1


async def test_deadline_ends_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("novamesh.session.GRACE_S", 0.0)
    error = await _refusal(tmp_path, Script(hang_after=1), deadline_s=0.3)
    assert error.code is Code.EXPIRED
    assert "0.3 s" in error.message


async def test_crashed_client_resumes_from_the_first_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _pool(tmp_path, Script(hang_after=2)) as pool:
        with monkeypatch.context() as patch:
            patch.setattr("novamesh.session.JobSession._stop", _crash)
            async with Client(home=tmp_path) as client:
                async for _ in client.run("nova-pico", "hi"):
                    break
        pool.script.hang_after = None
        for job in pool.jobs.values():
            job.cancelled.set()
        async with Client(home=tmp_path) as client:
            (left,) = client.resumable()
            done = await client.resume(left.hex()).completion()
    assert done.text == ANSWER
    # It came when it was read: nobody saw how fast it was made.
    assert (done.resumed, done.tokens_per_s, done.findings) == (True, 0.0, ())
    assert verify_file(done.receipt_path).job == left
    assert _left_over(tmp_path) == []


async def _crash(_: object) -> None:
    """A process that dies cancels nothing."""


async def test_restarted_coordinator_is_found_again(tmp_path: Path) -> None:
    with _pool(tmp_path) as pool:
        async with Client(home=tmp_path) as client:
            await client.models()
            pool.stop()
            pool.start()
            assert (await client.complete("nova-pico", "hi")).text == ANSWER


async def test_coordinator_away_keeps_the_record(tmp_path: Path) -> None:
    with _pool(tmp_path, Script(hang_after=1)) as pool:
        async with Client(home=tmp_path) as client:
            pieces = client.run("nova-pico", "hi").__aiter__()
            await anext(pieces)
            pool.stop()
            with pytest.raises(NovaMeshError) as caught:
                _ = [piece async for piece in pieces]
    assert caught.value.code is Code.UNAVAILABLE
    assert len(_left_over(tmp_path)) == 1


async def test_jobs_are_listed_shown_and_cancelled(tmp_path: Path) -> None:
    with _pool(tmp_path) as pool:
        async with Client(home=tmp_path) as client:
            done = await client.complete("nova-pico", "hi")
            (view,) = await client.jobs()
            assert view.state is JobState.SETTLED
            assert (await client.job(done.job)) == (await client.job(done.job.hex())) == view
            assert (await client.cancel(done.job)).state is JobState.CANCELLED
            assert (await client.cancel(done.job.hex())).state is JobState.CANCELLED
            for wrong in ("xyz", b"short", None):
                with pytest.raises(NovaMeshError, match="is no job id"):
                    await client.job(wrong)  # type: ignore[arg-type]
            for count in (0, 201):
                with pytest.raises(NovaMeshError, match="cannot be listed"):
                    await client.jobs(count)
    assert pool.calls["Cancel"] == 2


async def test_printed_completion_is_its_text(tmp_path: Path) -> None:
    with _pool(tmp_path):
        async with Client(home=tmp_path) as client:
            done = await client.complete("nova-pico", "hi", logprobs=1)
    assert str(done) == ANSWER
    assert len(repr(done)) < 1_000
    assert "receipt=" not in repr(done)


async def test_nothing_works_outside_the_block(tmp_path: Path) -> None:
    with _pool(tmp_path):
        client = Client(home=tmp_path)
        with pytest.raises(NovaMeshError, match="not open"):
            client.run("nova-pico", "hi")
        async with client:
            run = client.run("nova-pico", "hi")
            assert [piece async for piece in run]
            with pytest.raises(NovaMeshError, match="read once"):
                assert [piece async for piece in run]


async def test_error_in_the_block_comes_out_as_it_is(tmp_path: Path) -> None:
    with _pool(tmp_path, Script(hang_after=1)) as pool:
        with pytest.raises(ZeroDivisionError):
            await _divide(tmp_path)
        assert pool.calls["Cancel"] == 1


async def _divide(home: Path) -> None:
    async with Client(home=home) as client:
        async for _ in client.run("nova-pico", "hi"):
            _ = 1 // 0


async def test_no_pool_says_how_to_join(tmp_path: Path) -> None:
    with pytest.raises(NovaMeshError) as caught:
        async with Client(home=tmp_path):
            pass
    assert caught.value.code is Code.BAD_CONFIG


@pytest.mark.parametrize("text", ["", "xy", "ab" * 31, "ab" * 33])
def test_what_is_no_job_id(text: str) -> None:
    with pytest.raises(NovaMeshError):
        parse_job(text)
