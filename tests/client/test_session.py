"""An answer in several processes: whoever is lost, client or node, it is read whole in the end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from novamesh import Client, absence, retries
from novamesh.absence import Absence
from novamesh.client import Run
from novamesh.clock import Clock
from novamesh.completion import Piece
from novamesh.config import ClientSettings, find_places, save_pool
from novamesh.desk import Desk
from novamesh.job_records import JobRecords
from novamesh.job_transport import JobPool
from novamesh.order import order_of
from novamesh.pool import PoolConnection
from novamesh.receipts import Receipts, verify_file
from novamesh.session import JobSession
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.messages import JobId
from support.fake_answer import SEAMS, STOP, Death, Script
from support.fake_pool import FakePool
from support.parties import CLIENT


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "sleep", lambda _: asyncio.sleep(0))


async def _vanish(_: object) -> None:
    """A process that dies cancels nothing."""


async def _lose_client(home: Path, work: Callable[[Client], Run], pieces: int) -> list[str]:
    """The client is killed once so many pieces are here; what it had."""
    texts: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JobSession, "_stop", _vanish)
        async with Client(home=home) as client:
            async for piece in work(client):
                texts.append(str(piece))
                if len(texts) == pieces:
                    break
    return texts


@pytest.mark.parametrize("cut", [2, 4, 7, 9])
async def test_an_answer_outlives_client_node_client_and_node(tmp_path: Path, cut: int) -> None:
    """Each loss after another one; the last process delivers all of it, without a seam."""
    with FakePool(Script(answer=SEAMS)) as pool:
        save_pool(find_places(tmp_path), pool.entry)
        async with Client(home=tmp_path) as client:
            whole = await client.complete("nova-pico", "hi", seed=7, stop=[STOP])
        pool.script.deaths, pool.script.hang_after = [Death(cut), None, Death(1), None], 1
        asked: dict[str, Any] = {"seed": 7, "stop": [STOP]}
        await _lose_client(tmp_path, lambda c: c.run("nova-pico", "hi", **asked), 1)
        pool.script.hang_after = None
        async with Client(home=tmp_path) as client:
            (first,) = client.resumable()
            with pytest.raises(NovaMeshError, match="its node was lost") as caught:
                await client.resume(first).completion()
            assert f"with its prompt:  novamesh jobs resume {first.hex()[:12]}" in caught.value.hint
            (again,) = client.resumable(first.hex()[:8])
        pool.script.hang_after = 1  # of the second part, which its client does not see the end of
        await _lose_client(tmp_path, lambda c: c.resume(again, "hi"), 2)
        pool.script.hang_after = None
        async with Client(home=tmp_path) as client:
            (second,) = client.resumable(first.hex())  # found by the id of its first part
            run = client.resume(first, "hi")
            pieces = [piece async for piece in run]
            done = await run.completion()
    assert "".join(map(str, pieces)) == done.text == whole.text
    assert done.token_ids == whole.token_ids
    assert (done.parts[0].job, done.resumed) == (first, True)
    assert second in {part.job for part in done.parts}
    assert [part.job for part in verify_file(done.receipt_path).parts] == [
        part.job for part in done.parts
    ]
    assert _left(tmp_path) == ()


async def test_an_answer_that_broke_off_in_one_process_goes_on_in_another(tmp_path: Path) -> None:
    """Nobody takes the next part while there is time; later somebody does."""
    full = NovaMeshError(Code.NO_CAPACITY, "nobody is here")
    with FakePool(Script(deaths=[Death(3)])) as pool:
        texts: list[str] = []

        async def read(run: Run) -> None:
            async for piece in run:
                texts.append(str(piece))
                pool.script.refusals["Match"] = [full] * 100

        save_pool(find_places(tmp_path), pool.entry)
        async with Client(home=tmp_path) as client:
            with pytest.raises(NovaMeshError) as caught:
                await read(client.run("nova-pico", "hi", seed=7))
            assert caught.value.code is Code.NO_CAPACITY
            pool.script.refusals["Match"] = []
            (job,) = client.resumable()
            for wrong in ({"prompt": "ho"}, {"prompt": "hi", "system": "be brief"}):
                with pytest.raises(NovaMeshError, match="was asked something else"):
                    await client.resume(job, **wrong).completion()
            with pytest.raises(NovaMeshError, match="temperature is settled"):
                client.resume(job, "hi", temperature=1.0)
            with pytest.raises(NovaMeshError, match="broke off"):
                await client.resume(job).completion()
            done = await client.resume(job, "hi").completion()
        assert done.text == "Two plus three is five."
        assert done.text.startswith("".join(texts))
        assert [(part.start, part.end) for part in done.parts] == [(0, 3), (3, 5)]
    assert _left(tmp_path) == ()


async def test_whoever_stops_between_two_parts_wants_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    between = asyncio.Event()

    async def wait(seconds: float) -> None:
        between.set()
        await asyncio.sleep(60)

    monkeypatch.setattr(retries, "sleep", wait)
    with FakePool(Script(deaths=[Death(3)])) as pool:
        save_pool(find_places(tmp_path), pool.entry)
        async with Client(home=tmp_path) as client:
            asking = asyncio.create_task(client.complete("nova-pico", "hi"))
            await between.wait()
            assert len(client.resumable()) == 1
            asking.cancel()
            await asyncio.wait([asking])
    assert _left(tmp_path) == ()


async def test_new_answers_go_to_the_pool_again_once_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it is away they come from elsewhere, and nobody waits for it meanwhile."""
    monkeypatch.setattr(absence, "PAUSE_S", 0.3)
    clock, order = Clock.system(), order_of("nova-pico", "hi", {}, 20.0)
    with FakePool() as pool, FakePool(name="elsewhere") as elsewhere:
        here, there = (PoolConnection(each.entry, CLIENT, clock, 5.0) for each in (pool, elsewhere))

        async def without() -> JobPool:
            return there

        desk = Desk(
            here, ClientSettings(), JobRecords(tmp_path / "jobs"), Receipts(tmp_path / "receipts"),
            clock, None, without, True, Absence(here.answers, clock),
        )  # fmt: skip

        async def ask() -> list[int]:
            await JobSession(desk, _read).run(order)
            return [len(each.jobs) for each in (pool, elsewhere)]

        assert await ask() == [1, 0]
        pool.stop()
        assert await ask() == [1, 1]
        pool.start()
        hellos = pool.calls["Hello"]
        assert await ask() == [1, 2], "it may not be back yet"
        assert pool.calls["Hello"] == hellos
        await asyncio.sleep(0.4)
        assert await ask() == [2, 2]
        assert pool.calls["Hello"] == hellos + 1
        assert await ask() == [3, 2]
        await here.close()
        await there.close()


async def _read(piece: Piece) -> None:
    """Somebody who reads."""


def _left(home: Path) -> tuple[JobId, ...]:
    return JobRecords(find_places(home).jobs).jobs()
