"""Asking again: what can heal, as often as allowed, never what cannot."""

from __future__ import annotations

import asyncio

import pytest

from novamesh import retries
from novamesh.retries import WAIT_MAX_S, ask, pause
from novamesh_proto.errors import MEANINGS, Code, NovaMeshError


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "sleep", lambda _: asyncio.sleep(0))


class _Asked:
    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.times = 0

    async def __call__(self) -> str:
        self.times += 1
        if self.errors:
            raise self.errors.pop(0)
        return "answer"


async def test_what_heals_is_asked_again() -> None:
    asked = _Asked(NovaMeshError(Code.BUSY, "full"), NovaMeshError(Code.UNAVAILABLE, "away"))
    assert await ask(asked, 3, 10) == "answer"
    assert asked.times == 3


async def test_tries_are_bounded_and_the_last_error_is_seen() -> None:
    asked = _Asked(*(NovaMeshError(Code.UNAVAILABLE, f"away {n}") for n in range(9)))
    with pytest.raises(NovaMeshError, match="away 2"):
        await ask(asked, 3, 10)
    assert asked.times == 3


async def test_full_pool_is_asked_until_the_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    full = [NovaMeshError(Code.BUSY, "full", retry_after_ms=1) for _ in range(50)]
    asked = _Asked(*full, NovaMeshError(Code.STORAGE, "slow disk"), *full)
    assert await ask(asked, 2, 60) == "answer"
    monkeypatch.setattr(retries, "sleep", asyncio.sleep)
    asked = _Asked(*(NovaMeshError(Code.BUSY, "full", retry_after_ms=20) for _ in range(999)))
    with pytest.raises(NovaMeshError, match="full"):
        await ask(asked, 3, 1.2)
    assert 4 <= asked.times <= 10


async def test_those_refused_together_do_not_come_back_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waited: list[float] = []

    async def wait(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(retries, "sleep", wait)
    for _ in range(20):
        await ask(_Asked(NovaMeshError(Code.BUSY, "full", retry_after_ms=1000)), 3, 60)
    assert len(set(waited)) == 20
    assert all(1 <= seconds <= 1.5 for seconds in waited)


@pytest.mark.parametrize(
    "code", [code for code, meaning in MEANINGS.items() if not meaning.retryable]
)
async def test_what_cannot_heal_is_asked_once(code: Code) -> None:
    asked = _Asked(NovaMeshError(code, "no"))
    with pytest.raises(NovaMeshError):
        await ask(asked, 3, 10)
    assert asked.times == 1


async def test_bug_is_no_refusal() -> None:
    asked = _Asked(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        await ask(asked, 3, 10)
    assert asked.times == 1


def test_named_pause_is_kept_within_bounds() -> None:
    assert pause(NovaMeshError(Code.BUSY, "full", retry_after_ms=1500)) == 1.5
    assert pause(NovaMeshError(Code.BUSY, "full", retry_after_ms=10**9)) == WAIT_MAX_S
    assert pause(NovaMeshError(Code.BUSY, "full")) is True
    assert pause(NovaMeshError(Code.POLICY, "no", retry_after_ms=5)) is False


async def test_no_try_begins_after_the_time_given() -> None:
    asked = _Asked(NovaMeshError(Code.BUSY, "full", retry_after_ms=1_000))
    with pytest.raises(NovaMeshError, match="full"):
        await ask(asked, 3, 0.2)
    assert asked.times == 1


async def test_a_full_pool_is_asked_once_more_before_the_time_is_over() -> None:
    asked = _Asked(*(NovaMeshError(Code.BUSY, f"full {n}", retry_after_ms=60_000) for n in "abc"))
    with pytest.raises(NovaMeshError, match="full b"):
        await ask(asked, 3, 3.0)
    assert asked.times == 2


async def test_pauses_grow_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []

    async def wait(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(retries, "sleep", wait)
    asked = _Asked(*(NovaMeshError(Code.BUSY, "full") for _ in range(9)))
    assert await ask(asked, 10, 600) == "answer"
    usual = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0)
    assert all(least <= got <= least + 0.2 for least, got in zip(usual, waited, strict=True))
    assert max(waited) == WAIT_MAX_S


async def test_caller_may_decide_itself() -> None:
    asked = _Asked(NovaMeshError(Code.BUSY, "full"))
    with pytest.raises(NovaMeshError):
        await ask(asked, 3, 10, lambda _: False)
    assert asked.times == 1
