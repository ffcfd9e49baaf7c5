"""Staying attached: the handshake, what heals and what does not, and a clean farewell."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from novamesh_node.session import (
    EARLY_TRIES,
    FATAL,
    FATAL_AT_FIRST,
    PAUSE_EARLY_S,
    PAUSE_LEAST_S,
    PAUSE_MOST_S,
    check_clock,
    pause_s,
)
from novamesh_proto import envelope
from novamesh_proto.errors import MEANINGS, Code, NovaMeshError
from novamesh_proto.limits import CLOCK_SKEW_MS
from novamesh_proto.messages import (
    AttachCancel,
    AttachGoodbye,
    AttachHello,
    AttachRequest,
    AttachWelcome,
    IdleReason,
    IdleReport,
    JobId,
    NodeDescriptor,
    NodeLoad,
    RunningAttempt,
)
from support.clock import START_MS
from support.memory_attach import CERTIFICATE, CHALLENGE, ENDED, Pool
from support.offers import Offers
from support.parties import NETWORK, NODE


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("novamesh_node.session.PAUSE_LEAST_S", 0.0)
    monkeypatch.setattr("novamesh_node.session.PAUSE_MOST_S", 0.0)
    monkeypatch.setattr("novamesh_node.session.FAREWELL_S", 0.2)


@contextlib.asynccontextmanager
async def running(pool: Pool) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(pool.session.run(), name="session")
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def ends_with(pool: Pool, play: Callable[[], Awaitable[object]]) -> NovaMeshError:
    """The error that ends the session's run."""
    async with running(pool) as task:
        await play()
        with pytest.raises(NovaMeshError) as caught:
            await asyncio.wait_for(task, 5)
    return caught.value


async def test_the_hello_signs_nonce_certificate_and_descriptor() -> None:
    pool = Pool()
    pool.desk.running = (RunningAttempt(JobId(bytes(32)), 1, 7, 3),)
    assert pool.session.offset_ms is None
    async with running(pool):
        wire = pool.wire()
        hello = await wire.welcome()
        assert hello.nonce == CHALLENGE.nonce
        assert hello.certificate_key_digest == CERTIFICATE
        assert hello.running == pool.desk.running
        offered = envelope.open(hello.descriptor, NodeDescriptor, network=NETWORK)
        assert offered.issuer == NODE.node_id
        assert (await wire.hear()).load == NodeLoad(4, True)
        assert pool.session.offset_ms == 0
        assert pool.session.attached.is_set()
        assert pool.session.connected


async def test_the_backlog_goes_before_everything_new() -> None:
    pool = Pool()
    pool.desk.backlog = tuple(AttachRequest(load=NodeLoad(n, False)) for n in (1, 2))
    async with running(pool):
        wire = pool.wire()
        resume = (RunningAttempt(JobId(bytes(32)), 1, 7, 3),)
        await wire.welcome(AttachWelcome(bytes(16), resume))
        sent = [(await wire.hear()).load for _ in range(3)]
        assert [load.free_slots for load in sent if load] == [4, 1, 2]
        pool.session.announce()
        assert (await wire.hear()).load == NodeLoad(4, True)
    assert pool.desk.heard == [resume]


async def test_what_comes_down_goes_to_the_desk() -> None:
    pool = Pool()
    offer = Offers().make()
    cancel = AttachCancel(JobId(bytes(32)), 1, 7, "cancelled")
    async with running(pool):
        wire = pool.wire()
        await wire.welcome()
        for message in ({"assignment": offer.message}, {"cancel": cancel},
                        {"ack": offer.assignment.envelope}):  # fmt: skip
            pool.desk.seen.clear()
            wire.say(**message)
            await asyncio.wait_for(pool.desk.seen.wait(), 5)
    assert pool.desk.heard[1:] == [offer.message, cancel, offer.assignment.envelope]


@pytest.mark.parametrize("code", [Code.UNAVAILABLE, Code.BUSY, Code.EXPIRED, Code.INTERNAL])
async def test_a_coordinator_that_is_away_is_dialled_again(code: Code) -> None:
    pool = Pool()
    async with running(pool):
        for _ in range(3):
            pool.dials.put_nowait(NovaMeshError(code, "away"))
        first = pool.wire()
        await first.welcome()
        first.down.put_nowait(ENDED)
        second = pool.wire()
        await second.welcome()
        assert (await second.hear()).load is not None
        assert pool.session.trouble is None


@pytest.mark.parametrize("code", sorted(FATAL - {Code.NOT_A_MEMBER}))
async def test_what_cannot_heal_ends_the_node_with_its_reason(code: Code) -> None:
    async def play() -> None:
        pool.dials.put_nowait(NovaMeshError(code, "no", "hint"))

    pool = Pool()
    error = await ends_with(pool, play)
    assert (error.code, error.hint) == (code, "hint")


@pytest.mark.parametrize("code", sorted(FATAL_AT_FIRST))
async def test_what_worked_before_is_tried_again(code: Code) -> None:
    async def play() -> None:
        pool.dials.put_nowait(NovaMeshError(code, "no"))

    pool = Pool()
    assert (await ends_with(pool, play)).code is code
    pool = Pool()
    async with running(pool):
        first = pool.wire()
        await first.welcome()
        first.down.put_nowait(NovaMeshError(code, "no"))
        await pool.wire().welcome()


async def test_a_coordinator_that_does_not_welcome_is_dialled_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("novamesh_node.session.HANDSHAKE_S", 0.05)
    pool = Pool()
    async with running(pool):
        pool.wire().say(challenge=CHALLENGE)
        await pool.wire().welcome()


async def test_a_bug_met_by_one_message_ends_nothing() -> None:
    pool = Pool()
    async with running(pool):
        wire = pool.wire()
        await wire.welcome()
        pool.desk.bug = ZeroDivisionError()
        wire.say(cancel=AttachCancel(JobId(bytes(32)), 1, 7, "cancelled"))
        wire.say(cancel=AttachCancel(JobId(bytes(32)), 1, 8, "cancelled"))
        await asyncio.wait_for(pool.desk.seen.wait(), 5)
        assert pool.session.connected


async def test_who_is_no_member_joins_once() -> None:
    pool = Pool()
    stranger = NovaMeshError(Code.NOT_A_MEMBER, "who are you?")
    async with running(pool):
        pool.dials.put_nowait(stranger)
        await pool.wire().welcome()
    assert pool.joins == 1

    async def play() -> None:
        pool.dials.put_nowait(stranger)
        pool.dials.put_nowait(stranger)

    pool = Pool()
    assert (await ends_with(pool, play)).code is Code.NOT_A_MEMBER
    assert pool.joins == 1


async def test_a_coordinator_that_goes_away_before_the_join_is_asked_again() -> None:
    pool = Pool()
    pool.refusal = NovaMeshError(Code.UNAVAILABLE, "away")
    async with running(pool):
        pool.dials.put_nowait(NovaMeshError(Code.NOT_A_MEMBER, "who are you?"))
        pool.dials.put_nowait(NovaMeshError(Code.BUSY, "later"))
        wire = pool.wire()
        wire.say(challenge=CHALLENGE)
        await wire.hear()
        pool.refusal = None
        wire.down.put_nowait(NovaMeshError(Code.NOT_A_MEMBER, "who are you?"))
        await pool.wire().welcome()
    assert pool.joins == 2


async def test_a_refused_invite_ends_the_node() -> None:
    async def play() -> None:
        pool.dials.put_nowait(NovaMeshError(Code.NOT_A_MEMBER, "who are you?"))

    pool = Pool()
    pool.refusal = NovaMeshError(Code.FORBIDDEN, "the invite has expired")
    assert (await ends_with(pool, play)).code is Code.FORBIDDEN


async def test_a_goodbye_tells_why() -> None:
    async def play() -> None:
        wire = pool.wire()
        await wire.welcome()
        wire.say(goodbye=AttachGoodbye("banned", "for lying"))

    pool = Pool()
    error = await ends_with(pool, play)
    assert error.code is Code.BANNED
    assert "for lying" in error.message
    assert error.hint


async def test_a_goodbye_in_place_of_a_welcome_counts_too() -> None:
    async def play() -> None:
        wire = pool.wire()
        wire.say(challenge=CHALLENGE)
        await wire.hear()
        wire.say(goodbye=AttachGoodbye("banned", "for lying"))

    pool = Pool()
    assert (await ends_with(pool, play)).code is Code.BANNED


async def test_a_key_that_somebody_else_uses_too_ends_the_node() -> None:
    async def play() -> None:
        wire = pool.wire()
        await wire.welcome()
        wire.say(goodbye=AttachGoodbye("stale", "a newer session took its place"))

    pool = Pool()
    error = await ends_with(pool, play)
    assert error.code is Code.CONFLICT
    assert "node.key" in error.hint


async def test_an_old_descriptor_is_renewed() -> None:
    pool = Pool()
    async with running(pool):
        wire = pool.wire()
        wire.say(challenge=CHALLENGE)
        first = await wire.hear()
        wire.down.put_nowait(NovaMeshError(Code.STALE, "an older descriptor"))
        second = await pool.wire().welcome()
        assert first.hello is not None
        old = envelope.open(first.hello, AttachHello, network=NETWORK).message
        assert old.descriptor != second.descriptor


@given(st.integers(-(10**7), 10**7))
def test_a_wrong_clock_is_measured(ahead_ms: int) -> None:
    if abs(ahead_ms) <= CLOCK_SKEW_MS:
        check_clock(START_MS + ahead_ms, START_MS)
        return
    with pytest.raises(NovaMeshError) as caught:
        check_clock(START_MS + ahead_ms, START_MS)
    assert f"{abs(ahead_ms) / 1000:.0f} s" in caught.value.message
    assert caught.value.meaning.exit == 75


async def test_a_clock_that_was_never_right_ends_the_node() -> None:
    async def play() -> None:
        pool.wire().say(challenge=CHALLENGE)

    pool = Pool()
    pool.wall_ms += 2 * 3_600_000
    error = await ends_with(pool, play)
    assert error.code is Code.NOT_FRESH
    assert "7200 s ahead of" in error.message


async def test_a_clock_that_was_right_before_may_be_set_right_again() -> None:
    pool = Pool()
    async with running(pool):
        first = pool.wire()
        await first.welcome()
        pool.wall_ms += 2 * 3_600_000
        first.down.put_nowait(ENDED)
        wrong = pool.wire()
        wrong.say(challenge=CHALLENGE)
        await asyncio.wait_for(wrong.hung_up.wait(), 5)
        pool.wall_ms = START_MS
        await pool.wire().welcome()


async def test_idle_asks_and_is_answered() -> None:
    pool = Pool()
    with pytest.raises(NovaMeshError):
        await pool.session.ask_idle()
    report = IdleReport(3, 1, (IdleReason("slower than others", 2),))
    async with running(pool):
        wire = pool.wire()
        await wire.welcome()
        await wire.hear()
        asked = [asyncio.ensure_future(pool.session.ask_idle()) for _ in range(2)]
        assert (await wire.hear()).idle_query is not None
        wire.say(idle_report=report)
        assert await asyncio.gather(*asked) == [report, report]


async def test_a_descriptor_is_renewed_in_time() -> None:
    pool = Pool()
    async with running(pool):
        wire = pool.wire()
        await wire.welcome()
        await wire.hear()
        pool.session.advertise()
        pool.wall_ms += 20 * 3_600_000
        pool.session.advertise()
        assert (await wire.hear()).descriptor is not None


async def test_leaving_writes_what_waits_first() -> None:
    pool = Pool()
    async with running(pool) as task:
        wire = pool.wire()
        await wire.welcome()
        await wire.hear()
        pool.session.announce()
        pool.session.leave()
        assert (await wire.hear()).load is not None
        await asyncio.wait_for(wire.ended.wait(), 5)
        wire.down.put_nowait(ENDED)
        await asyncio.wait_for(task, 5)


async def test_leaving_does_not_wait_for_a_deaf_coordinator() -> None:
    pool = Pool()
    async with running(pool) as task:
        wire = pool.wire()
        await wire.welcome()
        pool.session.leave()
        await asyncio.wait_for(task, 5)


@given(st.integers(0, 10**6), st.integers(0, 2**32))
def test_pauses_grow_and_stay_bounded(failures: int, seed: int) -> None:
    pause = pause_s(failures, random.Random(seed))
    assert min(PAUSE_LEAST_S, pause) <= pause <= PAUSE_MOST_S
    later = pause_s(failures + 2, random.Random(seed))
    assert later >= pause or later >= PAUSE_MOST_S / 2


@given(st.integers(0, EARLY_TRIES - 1), st.integers(0, 2**32))
def test_a_short_absence_costs_a_short_pause(failures: int, seed: int) -> None:
    assert pause_s(failures, random.Random(seed)) <= PAUSE_EARLY_S


async def test_the_same_trouble_is_told_ever_more_seldom_and_names_the_next_try() -> None:
    pool = Pool()
    with structlog.testing.capture_logs() as lines:
        async with running(pool):
            for _ in range(9):
                pool.dials.put_nowait(NovaMeshError(Code.UNAVAILABLE, "away"))
            await pool.wire().welcome()
    told = [line for line in lines if line["log_level"] == "warning"]
    assert [line["failures"] for line in told] == [1, 2, 4, 8]
    assert all(line["next_try_s"] == 0 for line in told)


async def test_status_can_tell_when_the_next_try_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("novamesh_node.session.PAUSE_LEAST_S", 7.0)
    monkeypatch.setattr("novamesh_node.session.PAUSE_MOST_S", 7.0)
    pool = Pool()
    async with running(pool):
        assert pool.session.next_try_s == 0
        pool.dials.put_nowait(NovaMeshError(Code.UNAVAILABLE, "away"))
        for _ in range(50):  # turns of the loop, more than a refused dial takes
            await asyncio.sleep(0)
        assert 5 <= pool.session.next_try_s <= 7


def test_every_fatal_code_is_one_that_asking_again_does_not_heal() -> None:
    assert not any(MEANINGS[code].retryable for code in FATAL)
