"""One job's way through a pool: whom it is sealed to, what is on disk when, what is never sent."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest

from novamesh import Client, Code, NovaMeshError, retries
from novamesh.config import find_places, save_pool
from novamesh.job_records import JobRecords
from support.fake_answer import Death, Script
from support.fake_pool import FakePool


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "sleep", lambda _: asyncio.sleep(0))


@pytest.mark.parametrize(
    ("tampered", "code", "message"),
    [
        ("offer", Code.CORRUPT, "does not offer the model"),
        ("old descriptor", Code.NOT_FRESH, "expired"),
        ("foreign descriptor", Code.WRONG_NETWORK, "elsewhere"),
    ],
)
async def test_nothing_is_sealed_to_a_candidate_that_proves_nothing(
    tmp_path: Path, tampered: str, code: Code, message: str
) -> None:
    with FakePool(Script(tampered=tampered)) as pool:
        save_pool(find_places(tmp_path), pool.entry)
        async with Client(home=tmp_path) as client:
            with pytest.raises(NovaMeshError, match=message) as caught:
                await client.complete("nova-pico", "hi")
    assert caught.value.code is code
    assert pool.calls["Submit"] == 0
    assert list((tmp_path / "jobs").glob("*")) == []


async def test_keys_are_on_disk_before_the_job_is_handed_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    save, submit = JobRecords.save, FakePool.Submit
    monkeypatch.setattr(JobRecords, "save", lambda *a: (order.append("save"), save(*a))[1])
    monkeypatch.setattr(FakePool, "Submit", lambda *a: (order.append("submit"), submit(*a))[1])
    with FakePool() as pool:
        save_pool(find_places(tmp_path), pool.entry)
        async with Client(home=tmp_path) as client:
            await client.complete("nova-pico", "hi")
    assert order == ["save", "submit"]


@pytest.mark.parametrize("deaths", [[], [Death(3)]])
async def test_a_job_that_arrived_is_followed_although_the_pool_is_full_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deaths: list[Death | None]
) -> None:
    """The answer to Submit gets lost, and the job itself holds the only slot."""
    parts = len(deaths) + 1
    submit, match = FakePool.Submit, FakePool.Match

    def lose(self: FakePool, request: Any, context: Any) -> Any:
        submit(self, request, context)
        context.abort(grpc.StatusCode.UNAVAILABLE, "the answer got lost")

    def full_later(self: FakePool, request: Any, context: Any) -> Any:
        if self.calls["Submit"] > self.calls["Watch"]:
            self._refuse(context, NovaMeshError(Code.BUSY, "all 1 slots are busy", "", 500))
        return match(self, request, context)

    monkeypatch.setattr(FakePool, "Submit", lose)
    monkeypatch.setattr(FakePool, "Match", full_later)
    with FakePool(Script(deaths=deaths)) as pool:
        save_pool(find_places(tmp_path), pool.entry)
        async with Client(home=tmp_path) as client:
            done = await client.complete("nova-pico", "hi", deadline_s=20)
    assert done.text
    assert len(pool.jobs) == pool.calls["Submit"] == parts
    assert list((tmp_path / "jobs").glob("*")) == []


async def test_prompt_is_in_no_file_and_on_no_wire(tmp_path: Path) -> None:
    marker = "MARKER-5f0c7a"
    with FakePool(Script(hang_after=1)) as pool:
        save_pool(find_places(tmp_path), pool.entry)
        async with Client(home=tmp_path) as client:
            async for _ in client.run("nova-pico", marker):
                (job,) = pool.jobs.values()
                assert marker.encode() not in _written(tmp_path)
                assert marker.encode() not in job.terms.envelope.payload
                break
    assert pool.bodies[0].chat is not None  # the positive control: the node did read it
    assert pool.bodies[0].chat.messages[0].content == marker


def _written(home: Path) -> bytes:
    return b"".join(path.read_bytes() for path in home.rglob("*") if path.is_file())


async def test_terms_live_as_long_as_the_job_may_take(tmp_path: Path) -> None:
    with FakePool() as pool:
        save_pool(find_places(tmp_path), pool.entry)
        async with Client(home=tmp_path) as client:
            await client.complete("nova-pico", "hi", deadline_s=300)
    ((job),) = pool.jobs.values()
    terms = job.terms.message
    assert terms.timeout_ms == 300_000
    assert terms.header.expires_at_ms - terms.header.issued_at_ms == 302_000
