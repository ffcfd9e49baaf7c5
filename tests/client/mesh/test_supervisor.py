"""A trio side that crashes comes back, and nobody else notices."""

from __future__ import annotations

import asyncio
import itertools
import logging

import pytest
import trio

from novamesh.mesh.bridge import Main
from novamesh.mesh.supervisor import Supervisor
from novamesh_proto.errors import Code, NovaMeshError
from support.mesh_peers import until


class Life:
    """One life of a trio side that can be killed."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.death = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[Life]) -> None:
        """Until killed."""
        task_status.started(self)
        await self.death.wait()
        raise OSError(f"life {self.number} ended")


async def _number(life: Life) -> int:
    return life.number


async def test_every_crash_is_one_line_and_a_new_life(caplog: pytest.LogCaptureFixture) -> None:
    numbers = itertools.count()
    caplog.set_level(logging.WARNING)

    def make() -> Main[Life]:
        return Life(next(numbers)).run

    async with Supervisor(make, pause_min_s=0.01) as supervisor:
        for number in range(3):
            assert await supervisor.call(_number) == number
            supervisor.send(lambda life: life.death.set())
            await until(lambda number=number: supervisor.restarts > number and supervisor.value)
        assert await supervisor.call(_number) == 3
    lines = [record.getMessage() for record in caplog.records]
    assert [line.split(",")[0] for line in lines] == [
        f"mesh stopped (OSError: life {number} ended)" for number in range(3)
    ]


async def test_call_between_two_lives_is_unavailable() -> None:
    async with Supervisor(lambda: Life(0).run, pause_min_s=30) as supervisor:
        supervisor.send(lambda life: life.death.set())
        await until(lambda: supervisor.value is None)
        with pytest.raises(NovaMeshError) as raised:
            await supervisor.call(_number)
        assert raised.value.code is Code.UNAVAILABLE
        with pytest.raises(NovaMeshError):
            supervisor.send(print)


async def test_start_that_cannot_work_is_told_and_not_repeated() -> None:
    starts: list[int] = []

    async def unfit(*, task_status: trio.TaskStatus[Life]) -> None:
        starts.append(1)
        raise NovaMeshError(Code.UNSUPPORTED, "cannot be used safely")

    with pytest.raises(NovaMeshError, match="safely"):
        async with Supervisor(lambda: unfit):
            raise AssertionError
    assert starts == [1]


async def test_start_that_is_given_up_leaves_no_task() -> None:
    async def slow(*, task_status: trio.TaskStatus[Life]) -> None:
        await trio.sleep_forever()

    async def enter() -> None:
        async with Supervisor(lambda: slow):
            raise AssertionError

    task = asyncio.create_task(enter())
    await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "mesh supervisor"]
