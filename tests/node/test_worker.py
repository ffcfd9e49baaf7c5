"""The bridge: outputs in order, bounded, and no exception that ends more than it must."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator

import pytest

from novamesh_engine.request import FinishReason, Request, SamplingParams
from novamesh_node.clock import Clock
from novamesh_node.devices import DeviceLostError, Grip
from novamesh_node.worker import STALLED_NS, UNREAD_MAX, Output, Ticket, Worker
from novamesh_proto.errors import Code, NovaMeshError
from support.fake_engine import FIRST_TOKEN, FakeEngine


@contextlib.asynccontextmanager
async def working(
    engine: FakeEngine,
    energy: list[int] | None = None,
    clock: Clock | None = None,
    grip: Grip | None = None,
) -> AsyncIterator[Worker]:
    readings = iter(energy or [])
    counted = Grip(lambda: next(readings, None))
    worker = Worker(engine, "fake", clock or Clock(), grip or counted)
    worker.start()
    try:
        yield worker
    finally:
        await worker.stop()


def request(name: str, tokens: int = 5, prompt: int = 3) -> Request:
    return Request(name, tuple(range(1, prompt + 1)), SamplingParams(max_tokens=tokens))


async def read(ticket: Ticket) -> list[Output]:
    outputs: list[Output] = []
    async with asyncio.timeout(5):
        while not outputs or outputs[-1].step.finish is None:
            outputs.append(await ticket.next())
    return outputs


def tokens(outputs: list[Output]) -> list[int]:
    return [token for output in outputs for token in output.step.token_ids]


async def test_outputs_come_in_order_to_whom_they_belong() -> None:
    async with working(FakeEngine()) as worker:
        tickets = [worker.submit(request(name, 20)) for name in "abc"]
        for outputs in await asyncio.gather(*map(read, tickets)):
            assert tokens(outputs) == list(range(FIRST_TOKEN, FIRST_TOKEN + 20))
            assert outputs[-1].step.finish is FinishReason.LENGTH
        assert worker.prefilled == 9
        assert worker.alive


async def test_a_step_that_never_ends_is_no_sign_of_life() -> None:
    inside, go_on, now_ns = threading.Event(), threading.Event(), [0]

    def hang() -> None:
        inside.set()
        go_on.wait(10)

    clock = Clock(monotonic_ns=lambda: now_ns[0])
    async with working(FakeEngine(hook=hang), clock=clock) as worker:
        ticket = worker.submit(request("a"))
        assert await asyncio.to_thread(inside.wait, 10)
        assert worker.alive
        now_ns[0] = STALLED_NS
        assert not worker.alive
        go_on.set()
        await read(ticket)
        assert worker.alive


async def test_batch_size_is_the_largest_that_was_run() -> None:
    together = threading.Event()
    engine = FakeEngine(hook=lambda: together.wait(5) and None)
    async with working(engine) as worker:
        tickets = [worker.submit(request(name, 4)) for name in "ab"]
        together.set()
        outputs = await asyncio.gather(*map(read, tickets))
    assert max(each[-1].usage.batch_size_max for each in outputs) == 2


async def test_energy_is_read_when_a_request_begins_and_ends() -> None:
    async with working(FakeEngine(), [1000, 1500]) as worker:
        outputs = await read(worker.submit(request("a", 1)))
    assert outputs[-1].usage.energy_mj in (0, 500)


async def test_a_refusal_ends_its_own_request_only() -> None:
    async with working(FakeEngine(max_waiting=1)) as worker:
        first = worker.submit(request("a", 50))
        second = worker.submit(request("b"))
        with pytest.raises(NovaMeshError) as caught:
            await read(second)
        assert caught.value.code is Code.BUSY
        assert len(tokens(await read(first))) == 50


async def test_a_name_in_use_is_refused_at_once() -> None:
    async with working(FakeEngine()) as worker:
        ticket = worker.submit(request("a", 30))
        with pytest.raises(NovaMeshError) as caught:
            worker.submit(request("a"))
        assert caught.value.code is Code.CONFLICT
        await read(ticket)


async def test_a_step_that_raises_fails_the_requests_and_not_the_worker(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def explode() -> None:
        if engine.steps == 3:
            raise RuntimeError("secret prompt text")

    engine = FakeEngine(hook=explode)
    async with working(engine) as worker:
        with pytest.raises(NovaMeshError) as caught:
            await read(worker.submit(request("a", 50)))
        assert caught.value.code is Code.INTERNAL
        assert "secret" not in caught.value.message
        assert len(tokens(await read(worker.submit(request("b", 4))))) == 4
    said = capsys.readouterr()
    assert "secret" not in said.out + said.err
    assert "fake_engine.py" in said.out + said.err


async def test_memory_that_runs_out_ends_the_newest_request_only() -> None:
    together = threading.Event()
    engine = FakeEngine(hook=lambda: together.wait(5) and None, short_at=2)
    async with working(engine) as worker:
        first, second = (worker.submit(request(name, 9)) for name in "ab")
        together.set()
        shed = (await read(second))[-1].step
        assert shed.finish is FinishReason.ERROR
        assert shed.error is not None
        assert shed.error.code is Code.BUSY
        assert len(tokens(await read(first))) == 9


async def test_books_that_disagree_end_the_worker_with_a_fault() -> None:
    def explode() -> None:
        engine.corrupt = True
        raise RuntimeError("broken")

    engine = FakeEngine(hook=explode)
    async with working(engine) as worker:
        ticket = worker.submit(request("a"))
        with pytest.raises(NovaMeshError):
            await read(ticket)
        assert worker.fault is not None
        fault = await asyncio.wait_for(worker.fault, 5)
        assert fault.code is Code.INTERNAL


async def test_the_thread_holds_its_device_before_it_computes() -> None:
    seen: list[str] = []
    grip = Grip(hold=lambda: seen.append(threading.current_thread().name))
    engine = FakeEngine(hook=lambda: seen.append("step"))
    async with working(engine, grip=grip) as worker:
        await read(worker.submit(request("a", 1)))
    assert seen[:2] == ["engine-fake", "step"]


async def test_a_device_that_is_gone_ends_its_worker_and_everything_on_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def explode() -> None:
        if engine.steps == 3:
            raise RuntimeError("secret prompt text")

    def check() -> None:
        raise DeviceLostError("AcceleratorError")

    engine, together = FakeEngine(hook=explode), threading.Event()
    async with working(
        engine, grip=Grip(hold=lambda: together.wait(5) and None, check=check)
    ) as worker:
        tickets = [worker.submit(request(name, 50)) for name in "ab"]
        together.set()
        for ticket in tickets:
            with pytest.raises(DeviceLostError) as caught:
                await read(ticket)
            assert caught.value.code is Code.UNAVAILABLE
        assert worker.fault is not None
        assert (await asyncio.wait_for(worker.fault, 5)).message.startswith("a device of")
        with pytest.raises(DeviceLostError):
            worker.submit(request("c"))
    said = capsys.readouterr()
    assert "secret" not in said.out + said.err


async def test_a_condemned_worker_ends_what_it_has_with_the_fault() -> None:
    async with working(FakeEngine()) as worker:
        ticket = worker.submit(request("a", 10**6))
        await ticket.next()
        worker.condemn(NovaMeshError(Code.UNAVAILABLE, "its device is out"))
        with pytest.raises(NovaMeshError, match="its device is out"):
            await read(ticket)


async def test_an_abort_ends_the_answer_and_is_asked_for_once() -> None:
    async with working(FakeEngine()) as worker:
        ticket = worker.submit(request("a", 10**5))
        await ticket.next()
        worker.abort(ticket)
        worker.abort(ticket)
        outputs = await read(ticket)
        assert outputs[-1].step.finish is FinishReason.ABORTED


async def test_a_forgotten_request_is_aborted_and_its_outputs_let_go() -> None:
    engine = FakeEngine()
    async with working(engine) as worker:
        ticket = worker.submit(request("a", 10**5))
        await ticket.next()
        worker.forget(ticket)
        worker.forget(ticket)
        assert len(tokens(await read(worker.submit(request("b", 1000))))) == 1000
    assert engine.aborted == ["a"]


async def test_the_engine_rests_while_nobody_reads() -> None:
    engine = FakeEngine()
    async with working(engine) as worker:
        ticket = worker.submit(request("a", 10 * UNREAD_MAX))
        await ticket.next()
        before = -1
        while before != engine.steps:
            before = engine.steps
            await asyncio.to_thread(threading.Event().wait, 0.05)
        assert engine.steps < UNREAD_MAX
        assert len(tokens(await read(ticket))) == 10 * UNREAD_MAX - 1


async def test_it_stops_while_the_engine_is_at_work() -> None:
    async with working(FakeEngine()) as worker:
        await worker.submit(request("a", 10**6)).next()
    assert not any(thread.name == "engine-fake" for thread in threading.enumerate())
