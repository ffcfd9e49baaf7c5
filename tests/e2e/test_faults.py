"""Parties die at bad moments and the next job, or the same one, is still served."""

from __future__ import annotations

import asyncio
import json
import signal

import pytest

from novamesh import Client
from novamesh_proto.identity import format_node_id
from novamesh_proto.messages import JobState, JobView
from support.processes import Daemon, RealPool

pytestmark = pytest.mark.timeout(180)
PROBLEM = "What is 31 plus 14?"


def test_coordinator_restarts_between_two_jobs(pool: RealPool) -> None:
    first = json.loads(pool.cli("run", "nova-pico", PROBLEM, "--json").stdout)
    pool.coordinator.kill()
    pool.start_coordinator()
    pool.await_nodes(2)
    second = json.loads(pool.cli("run", "nova-pico", PROBLEM, "--json").stdout)
    assert first["text"] == second["text"]
    states = [job["state"] for job in json.loads(pool.cli("jobs", "ls", "--json").stdout)]
    assert states[:2] == ["settled", "settled"]


async def test_job_moves_on_when_its_node_dies_before_the_first_token(pool: RealPool) -> None:
    nodes = {
        daemon.ready.split()[-1]: daemon for daemon in pool.daemons.values() if _is_node(daemon)
    }
    for node in nodes.values():
        node.signal(signal.SIGSTOP)
    async with Client(home=pool.home("client")) as client:
        answer = asyncio.create_task(client.complete("nova-pico", PROBLEM))
        assigned = await _first_assignment(client)
        chosen = nodes.pop(format_node_id(assigned.node))
        chosen.kill()
        for node in nodes.values():
            node.signal(signal.SIGCONT)
        completion = await asyncio.wait_for(answer, 60)
        assert completion.text
        job = (await client.jobs(1))[0]
        assert job.state is JobState.SETTLED
        assert job.attempt == 2
        assert format_node_id(job.node) in nodes


def _is_node(daemon: Daemon) -> bool:
    return daemon.ready.startswith("node ready") and daemon.running


async def _first_assignment(client: Client) -> JobView:
    async with asyncio.timeout(30):
        while True:
            jobs = await client.jobs(1)
            if jobs and jobs[0].state is JobState.ASSIGNED:
                return jobs[0]
            await asyncio.sleep(0.05)
