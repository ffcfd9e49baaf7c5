"""An answer in several processes: whoever is lost, client or node, it is read whole in the end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from novamesh import Client, absence, part, retries
from novamesh.absence import Absence
from novamesh.client import Run
from novamesh.clock import Clock
from novamesh.completion import Piece
from novamesh.config import ClientSettings, find_places, load_config, save_pool
from novamesh.desk import Desk
from novamesh.job_records import JobRecords
from novamesh.job_transport import JobPool
from novamesh.order import order_of
from novamesh.pool import PoolConnection
from novamesh.receipts import Receipts, verify_file
from novamesh.session import JobSession
from novamesh_proto.errors import Code, NovaMeshError
from novamesh_proto.identity import format_node_id
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


async def test_of_a_part_that_brought_nothing_no_record_is_left(tmp_path: Path) -> None:
    """Nobody tells whether the second part arrived; the third one brings the rest."""
    lost = NovaMeshError(Code.UNAVAILABLE, "the answer got lost")
    left: list[tuple[JobId, ...]] = []
    with FakePool(Script(deaths=[Death(3)])) as pool:
        save_pool(find_places(tmp_path), pool.entry)
        async with Client(home=tmp_path) as client:
            run = client.run("nova-pico", "hi")
            async for _ in run:
                if pool.calls["Submit"] == 1:
                    pool.script.refusals["Submit"] = [lost] * ClientSettings().retries
                left.append(client.resumable())
            done = await run.completion()
    assert (pool.calls["Submit"], len(pool.jobs)) == (2 + ClientSettings().retries, 2)
    assert done.text == "Two plus three is five."
    assert max(map(len, left)) == 1
    assert _left(tmp_path) == ()


async def test_who_only_lost_the_network_reads_the_answer_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No prompt is there to go on with: what may still be read is neither stopped nor over."""
    monkeypatch.setattr(part, "UNREACHED_S", 0.1)
    with FakePool(Script(hang_after=2)) as pool:

        async def read(run: Run) -> None:
            async for _ in run:
                pool.stop()

        save_pool(find_places(tmp_path), pool.entry)
        await _lose_client(tmp_path, lambda c: c.run("nova-pico", "hi"), 1)
        config = load_config(tmp_path)
        node = f"{format_node_id(pool.nodes[0].node_id)}@127.0.0.1:9"
        config = replace(config, client=replace(config.client, nodes=(node,)))
        async with Client(config=config) as client:
            (job,) = client.resumable()
            with pytest.raises(NovaMeshError) as caught:
                await read(client.resume(job))
            assert caught.value.code is Code.UNAVAILABLE
            assert f"novamesh jobs resume {job.hex()[:12]}" in caught.value.hint
            assert not JobRecords(find_places(tmp_path).jobs).load(job).over
        pool.script.hang_after = None
        pool.start()
        async with Client(config=config) as client:
            done = await client.resume(job).completion()
        assert (done.text, len(done.parts)) == ("Two plus three is five.", 1)
        assert pool.calls["Cancel"] == 0
    assert _left(tmp_path) == ()


@pytest.mark.parametrize("call", ["ListModels", "Match", "Match of the second part", "nothing"])
async def test_where_no_way_leads_around_the_coordinator_it_is_asked_again(
    tmp_path: Path, call: str
) -> None:
    """Say, a broker is named, and the extra that reads it is missing."""
    away = NovaMeshError(Code.UNAVAILABLE, "the coordinator is away")
    clock, order = Clock.system(), order_of("nova-pico", "hi", {}, 20.0)
    script = Script(deaths=[Death(3)], refusals={call: [away]})
    with FakePool(script) as pool:
        here = PoolConnection(pool.entry, CLIENT, clock, 5.0)

        async def without() -> JobPool:
            raise NovaMeshError(Code.UNSUPPORTED, "the broker cannot be read")

        async def lose(_: Piece) -> None:
            if call.endswith("second part") and len(pool.jobs) == 1:
                script.refusals["Match"] = [away]

        gone = Absence(here.answers, clock)
        if call == "nothing":
            gone.begin()
        desk = Desk(
            here, ClientSettings(), JobRecords(tmp_path / "jobs"), Receipts(tmp_path / "receipts"),
            clock, None, without, True, gone,
        )  # fmt: skip
        done = await JobSession(desk, lose).run(order)
        await here.close()
    assert (done.text, len(done.parts)) == ("Two plus three is five.", 2)
    assert not any(script.refusals.get(name) for name in ("ListModels", "Match"))


async def _read(piece: Piece) -> None:
    """Somebody who reads."""


def _left(home: Path) -> tuple[JobId, ...]:
    return JobRecords(find_places(home).jobs).jobs()
