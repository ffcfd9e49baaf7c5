"""When an answer goes on after a loss, with what, and that nobody can see where it did."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from novamesh import Client, retries
from novamesh.completion import Completion, Piece
from novamesh.config import find_places, save_pool
from novamesh.failover import FRUITLESS_MAX, LEFT_S_MIN, Course, continue_from
from novamesh.job_records import JobRecord, JobRecords
from novamesh.receipts import verify_file
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.limits import EXCLUDED_MAX, PARTS_MAX
from novamesh_proto.messages import FinishReason, JobId, JobState, NodeId, PositionLogprobs
from support.answers import send_answer
from support.fake_answer import SEAMS, STOP, Death, Script
from support.fake_pool import FakePool
from support.parties import party

LOST = NovaMeshError(Code.NODE_LOST, "the node gave no sign of work for 15 s")
NODE, OTHER = party("a").node_id, party("b").node_id
BEGUN = Course().after(LOST, NODE, 7)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "sleep", lambda _: asyncio.sleep(0))


def test_the_first_try_follows_at_once_and_the_lost_node_is_passed_over() -> None:
    assert BEGUN.pause_s(LOST, 60.0) == 0.0
    assert BEGUN.lost == (NODE,)
    assert (BEGUN.parts, BEGUN.fruitless) == (1, 0)


def test_nothing_goes_on_that_never_began() -> None:
    assert Course().after(LOST, NODE, 0).pause_s(LOST, 60.0) is None


@pytest.mark.parametrize("code", list(Code))
def test_what_every_node_shares_ends_the_answer(code: Code) -> None:
    heals = {
        Code.NODE_LOST, Code.UNAVAILABLE, Code.INTERNAL, Code.BUSY, Code.STALE, Code.STORAGE,
        Code.EXPIRED, Code.NO_CAPACITY, Code.MODEL_NOT_FOUND, Code.CONFLICT,
    }  # fmt: skip
    assert (BEGUN.pause_s(NovaMeshError(code, "no"), 60.0) is not None) == (code in heals)


def test_nothing_is_begun_after_the_deadline() -> None:
    assert BEGUN.pause_s(LOST, LEFT_S_MIN) == 0.0
    assert BEGUN.pause_s(LOST, LEFT_S_MIN - 0.01) is None
    later = BEGUN.after(LOST, OTHER, 0)
    assert later.pause_s(LOST, LEFT_S_MIN + 0.1) is None  # it would be over after the pause


def test_pauses_grow_while_nothing_comes_and_end() -> None:
    course, pauses = BEGUN, []
    while (pause_s := course.pause_s(LOST, 600.0)) is not None:
        pauses.append(pause_s)
        course = course.after(LOST, None, 0)
    assert len(pauses) == FRUITLESS_MAX + 1
    assert pauses == sorted(pauses)
    assert BEGUN.after(LOST, NODE, 0).after(LOST, OTHER, 1).pause_s(LOST, 60.0) == 0.0


def test_a_refusal_that_names_a_time_is_heeded_and_its_node_may_be_asked_again() -> None:
    busy = NovaMeshError(Code.BUSY, "full", retry_after_ms=900)
    assert BEGUN.pause_s(busy, 60.0) == 0.9
    assert BEGUN.after(busy, OTHER, 0).lost == (NODE,)


@given(st.lists(st.integers(0, 100), max_size=200))
def test_parts_and_lost_nodes_are_bounded(losses: list[int]) -> None:
    course = Course()
    for number in losses:
        course = course.after(LOST, NodeId(bytes([number]) * 38), 1)
        assert (course.pause_s(LOST, 60.0) is None) == (course.parts >= PARTS_MAX)
    assert len(course.lost) == len(set(course.lost)) <= EXCLUDED_MAX
    if losses:
        assert course.lost[-1] == bytes([losses[-1]]) * 38


def test_what_goes_on_is_the_same_answer() -> None:
    sent = send_answer()
    pieces = (Piece("a", (5, 6)), Piece("", (7,)))
    after = continue_from(replace(sent.record, received=pieces))
    assert after.token_ids == (5, 6, 7)
    assert after.parent_job == sent.record.job
    assert after.sampling == sent.record.terms.message.sampling
    assert after.client_seed == sent.record.client_seed


async def _ask(home: Path, pool: FakePool, **asked: object) -> tuple[list[Piece], Completion]:
    save_pool(find_places(home), pool.entry)
    async with Client(home=home) as client:
        run = client.run("nova-pico", "hi", seed=7, **asked)  # type: ignore[arg-type]
        pieces = [piece async for piece in run]
        return pieces, await run.completion()


@pytest.mark.parametrize(("how", "signed"), [("lost", 2), ("handed back", 3), ("silent", 2)])
async def test_an_answer_whose_node_is_lost_goes_on_at_another(
    tmp_path: Path, how: str, signed: int
) -> None:
    with FakePool(Script(deaths=[Death(3, how)])) as pool:
        pieces, done = await _ask(tmp_path, pool)
        first, last = pool.jobs
        assert "".join(map(str, pieces)) == done.text == "Two plus three is five."
        assert done.token_ids == (0, 1, 2, 3, 4)
        assert [piece.finish for piece in pieces][-1] is FinishReason.STOP
        one, two = done.parts
        assert (one.job, one.start, one.signed, one.end) == (first, 0, signed, 3)
        assert (two.job, two.start, two.signed, two.end) == (last, 3, 5, 5)
        assert one.node != two.node
        assert (done.job, done.node) == (two.job, two.node)
        assert pool.excluded[-1] == (one.node,)
        body, again = pool.bodies
        assert again.prefix_token_ids == (0, 1, 2)
        assert (again.client_seed, again.chat, again.stop) == (
            body.client_seed, body.chat, body.stop,
        )  # fmt: skip
        verified = verify_file(done.receipt_path, pool.key.node_id)
        assert [span.unattested for span in verified.spans] == [3 - signed, 0]
        assert verified.job == last
    assert list((tmp_path / "jobs").glob("*")) == []
    assert 0 < done.ttft_s <= done.total_s


async def test_a_node_that_signed_nothing_is_a_part_all_the_same(tmp_path: Path) -> None:
    with FakePool(Script(deaths=[Death(1, "silent")])) as pool:
        _, done = await _ask(tmp_path, pool)
        assert (done.parts[0].signed, done.parts[0].unattested) == (0, 1)
        assert verify_file(done.receipt_path, pool.key.node_id).earlier[0].checkpoint is None


async def test_an_answer_that_begins_again_goes_on_instead(tmp_path: Path) -> None:
    with FakePool(Script(tampered="restart")) as pool:
        pieces, done = await _ask(tmp_path, pool)
        assert "".join(map(str, pieces)) == "Two plus three is five."
        assert len(done.parts) == 2
        assert next(iter(pool.jobs.values())).view.state is JobState.CANCELLED


async def test_a_part_that_nobody_could_stop_is_stopped_before_the_answer_goes_on(
    tmp_path: Path,
) -> None:
    """Its node was lost while the pool could not be told: to the pool it is still at work."""
    away = NovaMeshError(Code.UNAVAILABLE, "the coordinator is away")
    at_work = NovaMeshError(Code.CONFLICT, "the job to continue is still at work")
    with FakePool(Script(tampered="restart", refusals={"Cancel": [away]})) as pool:
        save_pool(find_places(tmp_path), pool.entry)
        async with Client(home=tmp_path) as client:
            run = client.run("nova-pico", "hi", seed=7)
            async for _ in run:
                if len(pool.jobs) == 1 and not pool.calls["Cancel"]:
                    pool.script.refusals["Submit"] = [at_work]
            done = await run.completion()
        assert done.text == "Two plus three is five."
        assert len(done.parts) == 2
        assert pool.jobs[done.parts[0].job].view.state is JobState.CANCELLED


async def test_where_nobody_else_is_the_lost_node_is_asked_again(tmp_path: Path) -> None:
    with FakePool(Script(deaths=[Death(2)])) as pool:
        pool.nodes = pool.nodes[:1]
        pieces, done = await _ask(tmp_path, pool)
        assert "".join(map(str, pieces)) == "Two plus three is five."
        assert [part.node for part in done.parts] == [pool.nodes[0].node_id] * 2


async def test_a_part_that_brings_nothing_is_no_part(tmp_path: Path) -> None:
    with FakePool(Script(deaths=[Death(2), Death(0), Death(0), Death(1)])) as pool:
        pieces, done = await _ask(tmp_path, pool)
        assert "".join(map(str, pieces)) == "Two plus three is five."
        assert [(part.start, part.end) for part in done.parts] == [(0, 2), (2, 3), (3, 5)]
        assert len(pool.jobs) == 5


async def test_an_answer_that_is_whole_gets_its_proof_from_another_node(tmp_path: Path) -> None:
    """Its last chunk came, and its attestation did not."""
    with FakePool(Script(deaths=[Death(5)])) as pool:
        pieces, done = await _ask(tmp_path, pool)
        assert "".join(map(str, pieces)) == "Two plus three is five."
        assert [piece.finish for piece in pieces].count(FinishReason.STOP) == 1
        assert [(part.start, part.end) for part in done.parts] == [(0, 5), (5, 5)]
        assert verify_file(done.receipt_path).completion_tokens == 0


@pytest.mark.parametrize("code", [Code.POLICY, Code.CANCELLED, Code.CORRUPT])
async def test_what_every_node_would_say_is_raised(tmp_path: Path, code: Code) -> None:
    with FakePool(Script(deaths=[Death(2, code=code)])) as pool:
        with pytest.raises(NovaMeshError) as caught:
            await _ask(tmp_path, pool)
        assert caught.value.code is code
        assert len(pool.jobs) == 1
    assert list((tmp_path / "receipts").glob("*")) == []
    assert list((tmp_path / "jobs").glob("*")) == []


async def test_too_many_parts_end_the_answer(tmp_path: Path) -> None:
    words = tuple(f"w{n} " for n in range(40))
    with FakePool(Script(answer=words, deaths=[Death(1)] * 40)) as pool:
        with pytest.raises(NovaMeshError) as caught:
            await _ask(tmp_path, pool)
        assert caught.value.code is Code.NODE_LOST
        assert len(pool.jobs) == PARTS_MAX


@pytest.mark.parametrize("cut", range(1, len(SEAMS)))
async def test_no_seam_can_be_seen_wherever_it_is(tmp_path: Path, cut: int) -> None:
    """Characters in halves and stop strings in pieces come exactly once, log probabilities too."""
    whole = "€ café ENDive 🦊!ENDING? no, END of it "
    with FakePool(Script(answer=SEAMS, deaths=[Death(cut)])) as pool:
        pieces, done = await _ask(tmp_path, pool, stop=[STOP], logprobs=1)
    assert "".join(map(str, pieces)) == done.text == whole
    assert done.token_ids == tuple(range(13))
    assert _chosen(done.logprobs) == list(range(13))
    assert len(done.parts) == 2


def _chosen(logprobs: tuple[PositionLogprobs, ...]) -> list[int]:
    return [one.chosen.token_id for one in logprobs]


async def test_a_later_part_is_resumed_after_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client dies while the second part is under way; another process reads all of it."""
    kept: list[JobRecord] = []
    save = JobRecords.save
    monkeypatch.setattr(JobRecords, "save", lambda *a: (kept.append(a[1]), save(*a))[1])
    with FakePool(Script(answer=SEAMS, deaths=[Death(4, "handed back")])) as pool:
        _, done = await _ask(tmp_path, pool, stop=[STOP])
        JobRecords(find_places(tmp_path).jobs).save(kept[-1])
        done.receipt_path.unlink()
        async with Client(home=tmp_path) as client:
            assert client.resumable() == (done.job,)
            run = client.resume(JobId(done.job))
            pieces = [piece async for piece in run]
            again = await run.completion()
    assert "".join(map(str, pieces)) == again.text == done.text
    assert (again.token_ids, again.parts) == (done.token_ids, done.parts)
    assert again.resumed
    assert verify_file(again.receipt_path).parts[0].job == done.parts[0].job
